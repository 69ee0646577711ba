"""The bounds that several rooms share, with the relations between them asserted.

A bound that an operator may change is a setting in `config.settings` whose ceiling stands here. A bound that one
module alone needs stands in that module.
"""

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB

# MQTT. AWS IoT's hard payload limit, the smallest of the large brokers'.
MESSAGE_BYTES = 128 * KIB
# Unacknowledged messages that a broker may send to us (Receive Maximum). Messages are acknowledged after their answer,
# so this is the back-pressure.
RECEIVE_MAXIMUM = 64
OUTBOX_MESSAGES = 1024
# A count does not bound memory: 1,024 messages of 128 KiB are 128 MiB, on a board that has 512.
OUTBOX_BYTES = 8 * MIB
# Read and not yet taken. 5,000 small requests at once from one client (its share is four fifths of the bytes) are read
# wholly, so that they do not stand in the socket before the requests of others.
INBOX_MESSAGES = 8192
INBOX_BYTES = 4 * MIB
# What a waiting message takes beside its body, measured with tracemalloc: topics, properties, objects.
INBOX_MESSAGE_BYTES = 576
# Our unacknowledged messages towards the broker; a smaller Receive Maximum of the broker replaces it.
INFLIGHT_MESSAGES = 64
TOPIC_BYTES = 512
# mosquitto disconnects a client that publishes to a topic of more than 200 levels, EMQX of more than 128.
TOPIC_LEVELS = 16
CORRELATION_BYTES = 128
CLIENT_ID_BYTES = 64

# Requests.
QUEUE_JOBS = 256
# A count does not bound memory: 256 requests of 128 KiB are 32 MiB as text and several times that when parsed.
QUEUE_BYTES = 8 * MIB
TEXTS_PER_REQUEST = 64
TEXT_BYTES = 32 * KIB
JSON_DEPTH = 16
DEADLINE_DEFAULT_S = 30.0
DEADLINE_MAX_S = 3600.0
DEDUP_ENTRIES = 4096
PRIORITY_HIGHEST = 0
PRIORITY_DEFAULT = 5
PRIORITY_LOWEST = 9

# Worker protocol: one frame holds at most a full batch of texts and the answers to it.
FRAME_BYTES = 4 * MIB
WORKER_BACKLOG_FRAMES = 64
BATCH_ROWS = 64
# A worker with jobs that reports on none of them for this long is considered hung and is ended.
WORKER_SILENCE_S = 30.0
# A generator's sequence is at work for one client at least this long, where more clients ask than there are sequences.
ANSWER_TURN_S = 0.5
# So many clients beyond a generator's sequences have one answer each inside its worker, in turn with the others. Few,
# since all of them are longer on their way: where more ask, the others wait for the end of an answer, or are refused.
ANSWERS_BEYOND = 4
# Time for the golden probes of a package on the slowest board.
MEASURE_S = 300.0
# The longest step that counts for a pause. A longer one did not compute all the time (a hung worker, a stopped
# process), and a proportional pause would leave the model unserved for minutes. If steps really take this long, the
# temperature rises and the governor reduces the duty share.
PACED_STEP_S = 10.0
# Time limit of a load of a model whose trial was timed on this board: LOAD_SLOWER times that (a Raspberry Pi 4 that is
# too hot computes at a third of its speed, beside other models and with the weights no longer in the page cache), and
# at least a base plus a time by size, since eMMC and SD cards read about 50 MB/s.
LOAD_BASE_S = 60.0
LOAD_S_PER_GIB = 20.0
LOAD_SLOWER = 10.0
# Of any other load. A warm-up at the largest shape takes minutes on a Raspberry Pi Zero 2, an engine of TensorRT is
# built for a quarter of an hour on a Jetson Nano.
LOAD_LONGEST_S = 3600.0
# Time limit of an install, removal or rollback that was ordered over MQTT: the trials of some variants, each with the
# longest load. Then the process that carries it out has so long to end after each signal.
ORDER_S = 4 * LOAD_LONGEST_S
ORDER_END_S = 10.0
# A load that has used no processor time and read nothing for this long hangs.
LOAD_STALL_S = 60.0
ADAPTERS_RESIDENT = 32

# The desired state: things that it may name, and the running time that it may ask for. 128 items of `reported`, each
# with two digests and a reason, fill two thirds of a message.
DESIRED_ITEMS = 128
DESIRED_LEAST_S = 60.0
DESIRED_LONGEST_S = 30 * 86400.0

# Packages.
MANIFEST_BYTES = 4 * MIB
MANIFEST_DEPTH = 12
# Objects and lists of a document. 64 probes with 1,024 logits each for a dozen variants have some thousand.
MANIFEST_PARTS = 100_000
STATEMENT_BYTES = 256 * KIB
# Of a statement or a root file; a root with 64 keys in each role has some hundred.
STATEMENT_PARTS = 1024
# Of a package's manifest in a registry, which is read before its statement: each file is two objects of 260 bytes.
ARTEFACT_BYTES = 256 * KIB
ARTEFACT_PARTS = 2048
INDEX_ENTRIES = 256
LAYERS = 256
PROBES = 64
# Names of models, adapters, products and channels. They are parts of topics and file names.
NAME_CHARACTERS = 64
# Classes of a classifier. Banking77 has 77, CLINC150 151, the largest topic taxonomies in use some hundreds. A class
# costs a column of the head: hidden width x 4 bytes for each resident adapter and each position of the bank.
LABELS = 1024
# Labels of spans: a word has two classes for each, and its classes are compared word by word.
SLOT_LABELS = 64
# Windows that the contexts of a request are read in, one after another: each is a row, as a text is. For one question
# 64 of 384 tokens are about 64 KiB of English.
ANSWER_WINDOWS = TEXTS_PER_REQUEST
# Tokens that an answer has at most; BERT's script for SQuAD takes 30.
ANSWER_TOKENS = 512
# A label may be a sentence. 1,024 labels of 256 characters of three bytes are 768 KiB of a manifest.
LABEL_CHARACTERS = 256
# A golden probe; longer texts are left to requests.
PROBE_CHARACTERS = 4096
# A generator's texts that share batches with golden probes are cut to this: a slow board reads few tokens a second.
COMPANY_TOKENS = 64
# Tokens of a text for an encoder; prompt and answer of one sequence for a generator (the longest contexts in use).
TASK_TOKENS = 8192
CONTEXT_TOKENS = 131_072
BLOB_BYTES = 64 * GIB
PATH_BYTES = 255
# An index of 256 manifests, each with its config, weights, tokenizer, probes and notes, has some 1,500 files. Their
# headers are read before a signature is.
PACKAGE_MEMBERS = 2048
# The tokenizer.json of the largest multilingual vocabularies has 17 MB.
TOKENIZER_BYTES = 64 * MIB
# Parts of an ONNX graph. A node of two bytes is an object of about 170 bytes in ONNX Runtime, so the count bounds a
# load, not the file's size. The deepest encoders in use have some ten thousand nodes.
GRAPH_NODES = 50_000
GRAPH_TENSORS = 50_000
GRAPH_FIELDS = 500_000
# One text of it; the longest is the description of an adapter bank or a documentation, of some 100 KiB.
GRAPH_TEXT_BYTES = 4 * MIB
# Heads of weight files, each counted in the loop that reads it. safetensors: a Mixture of Experts in one file has some
# thousand tensors, each with two lists; numpy and ONNX Runtime know no more than some dimensions.
SAFETENSORS_HEADER_BYTES = 16 * MIB
SAFETENSORS_DIMENSIONS = 8
WEIGHT_TENSORS = 20_000
# GGUF: the largest vocabularies (262,144 tokens with 515,000 merges) have 0.8 million texts, a chat template 64 KiB.
GGUF_KEYS = 4096
GGUF_TEXT_BYTES = MIB
GGUF_TEXTS_BYTES = 8 * MIB
GGUF_ITEMS = 2_000_000
GGUF_KEPT_ITEMS = 64 * KIB
# Any count that a head states (layers, heads, widths, context); the longest context in use is 10,485,760 tokens.
GGUF_COUNT = 2**24
# After this many trials of an install that were interrupted (power, kernel) it is not retried automatically.
INSTALL_TRIALS = 3

# Spool of events on disk.
SPOOL_BYTES = 4 * MIB
SPOOL_EVENTS = 10_000
EVENT_BYTES = 16 * KIB

assert TEXT_BYTES <= MESSAGE_BYTES
assert RECEIVE_MAXIMUM <= QUEUE_JOBS, "an acknowledged message always finds room to be answered"
assert RECEIVE_MAXIMUM <= INBOX_MESSAGES
assert MESSAGE_BYTES * 16 <= INBOX_BYTES
assert MESSAGE_BYTES * 16 <= OUTBOX_BYTES
assert MESSAGE_BYTES * 2 <= FRAME_BYTES, "whatever arrives in one message fits in one frame to a worker"
assert QUEUE_JOBS <= DEDUP_ENTRIES
assert MESSAGE_BYTES * 16 <= QUEUE_BYTES
assert LABELS * LABEL_CHARACTERS * 3 * 2 <= MANIFEST_BYTES, "a manifest holds the labels, escaped"
assert EVENT_BYTES * 16 <= SPOOL_BYTES
assert PRIORITY_HIGHEST <= PRIORITY_DEFAULT <= PRIORITY_LOWEST

DEVICES_WATCHED = 4096
"""Devices of one broker that a client keeps the newest messages of: whoever may publish there can name any number."""
