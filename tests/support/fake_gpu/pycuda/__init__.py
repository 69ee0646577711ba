"""A stand-in for pycuda: `driver` alone, in ordinary memory."""
