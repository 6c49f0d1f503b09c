"""Whether Triton's interpreter can run here: a matter of versions, read without importing any."""

from importlib import metadata


def why_broken() -> str:
    """Why the interpreter fails with the installed NumPy, and the remedy; empty where it works.

    Triton before 3.7 calls `int()` on an array of one element, which NumPy refuses since 2.4: every
    loop whose bounds are known only at run time raises. Code compiled for a GPU does not use NumPy.
    A package that is not installed cannot be the reason.
    """
    try:
        triton, numpy = metadata.version("triton"), metadata.version("numpy")
    except metadata.PackageNotFoundError:
        return ""
    if _release(triton) >= (3, 7) or _release(numpy) < (2, 4):
        return ""
    return (
        f"the interpreter of triton {triton} fails with numpy {numpy}: "
        "pip install 'triton>=3.7', or 'numpy<2.4'"
    )


def _release(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)
