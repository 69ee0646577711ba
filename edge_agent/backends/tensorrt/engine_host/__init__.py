"""Builds, loads and runs TensorRT engines in a process of its own. `host_client.py` starts it.

One self-contained program: standard library, numpy, tensorrt and pycuda, in the syntax of Python 3.6; its modules
import each other and nothing else of `edge_agent`. A board's TensorRT lives in the Python of its JetPack (3.6 on a
Nano, 3.8 to 3.12 on an Orin), which is older than the agent's. Tokens, tasks, batching and the choice of bank positions
are not known here. `__main__` speaks the protocol, `build_engine` builds, `loaded_engine` runs, `device_access` is what
they share.

Frames on the socket: a 4-byte big-endian length, then a JSON object. A request is {"id", "op", ...}; it is answered by
any number of {"id", "event", ...} and then one {"id", "ok": true, ...} or {"id", "ok": false, "error", "remedy",
"fatal", "engine"}. Arrays travel in shared memory, whose file descriptor comes with the request `bind`. Operations:

    probe      {}                                        what this interpreter, TensorRT and device are
    build      {onnx, plan, profile, precision, ...}     an engine file from a graph (see `build_engine.build`)
    load       {plan, bank: [inputs], positions}         one engine, its tensors, a bank of `positions` adapters
    bind       {bytes, regions, adapter, stride, residents} + descriptor    where tensors and adapters lie in it
    write      {position, resident}                      copy an adapter of the shared memory to one bank position
    run        {shapes, rows, start}                     one execution; row i uses bank position start + i
    footprint  {}                                        bytes on the device and in this process
    close      {}                                        free everything and end

The main thread owns the CUDA context (the device's primary one, which TensorRT uses as well) and pops it at the end.
A second thread only ends the process when the client disappears during a build or an execution.
"""
