"""The canonical view: any supported Transformer as named tensors, in one form that can be run.

A teacher file translates its checkpoint into a `View`; a student file says which tensors of a view it takes.
So N teachers and M students need N + M files. The view is executable: `View.run` is the only teacher forward
in the project, and for every registered teacher a test holds it and each residual stream against the
teacher's own code.
"""
