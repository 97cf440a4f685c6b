"""Only what pyproject.toml cannot say: the cffi module, and one wheel for every Python from 3.11 on (abi3)."""

from setuptools import setup

setup(cffi_modules=["cext/build_ffi.py:ffi"], options={"bdist_wheel": {"py_limited_api": "cp311"}})
