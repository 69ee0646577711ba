"""TensorRT: the program that owns the engine (`engine_host`) and the client that speaks to it (`host_client`)."""
