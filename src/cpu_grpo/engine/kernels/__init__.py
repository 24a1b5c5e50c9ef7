"""What torch and oneDNN are slow at, in C++: passes over memory between products, and products of few rows.

With a C++ compiler at hand (g++ or clang++) the sources become a shared library in the user's cache directory, in a few
seconds and once for each machine and version. Without one, torch computes the same a few times slower.
"""

from cpu_grpo.engine.kernels.build import Native, native

__all__ = ["Native", "native"]
