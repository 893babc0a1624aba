"""Triton kernels, one file an op. This folder installs as `anifast.kernels`."""

if __name__ == "kernels":
    raise ImportError(
        "`import kernels` found the source folder of anifast.kernels: import anifast.kernels instead. If another "
        "package called kernels was meant, run outside anifast's repository, whose root comes first on the path."
    )
