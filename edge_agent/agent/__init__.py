"""The story of a request on the device. Asynchronous; talks through ports, owns no library I/O."""
