// A delegate of LiteRT that takes no operation, for tests: lite/delegates/external/external_delegate_interface.h.
// Compiled with -DREFUSES it refuses every graph, with -DABSENT it finds no device.
#include <stddef.h>
#include <stdint.h>

typedef struct Delegate {
  void* data;
  int (*prepare)(void* context, struct Delegate* self);
  void* copy_from;
  void* copy_to;
  void* free_handle;
  int64_t flags;
  void* builder;
} Delegate;

static int prepare(void* context, Delegate* self) {
#ifdef REFUSES
  return 1;
#else
  return 0;
#endif
}

static Delegate only = {NULL, prepare, NULL, NULL, NULL, 0, NULL};

void* tflite_plugin_create_delegate(char** keys, char** values, size_t count, void (*report)(const char*)) {
#ifdef ABSENT
  report("no such device is plugged in");
  return NULL;
#else
  return &only;
#endif
}

void tflite_plugin_destroy_delegate(void* delegate) {}
