"""Runtimes behind one seam (`api`). Only the worker child imports a backend."""
