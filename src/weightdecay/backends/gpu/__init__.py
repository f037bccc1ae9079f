"""Runs a rule as Triton: one launch for all parameters of a kind on a GPU, at the speed of its memory.

`codegen.py` writes the loops around a step as text, which needs no Triton, and `ops.py` gives operators and operations their
meaning there. `kernel.py` makes functions of the text, `libdevice.py` has the operations that Triton's operators leave out,
`partial_sums.py` adds up what programs leave, `param_table.py` lists the parameters on the device, and `backend.py` is what an
optimizer asks.

With TRITON_INTERPRET=1 the same kernels run on the CPU, slowly: that is for tests.
"""
