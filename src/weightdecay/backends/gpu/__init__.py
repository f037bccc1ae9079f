"""Reads a rule as Triton: one launch for all parameters of a kind on a GPU, at the speed of its memory.

`values` gives operators and words their meaning and `source` writes the loops around a step: text, which needs no Triton to be
made. `kernel` makes functions of it, `words` are those that Triton's operators leave out, `partials` puts together what
programs leave, `table` lists the parameters on the device, and `reader` is what an optimizer asks.

With TRITON_INTERPRET=1 the same kernels run on the CPU, slowly: that is for tests.
"""
