"""The passes over memory between matrix products, each fused into one: compiled here on first use, or done by torch.

With a C++ compiler at hand (g++ or clang++) `kernels.cpp` becomes a shared library in the user's cache directory, in
about two seconds and once for each machine and version. Without one, torch computes the same a few times slower.
"""

from cpu_grpo.kernels.build import Native, native

__all__ = ["Native", "native"]
