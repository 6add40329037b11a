"""One file a library (timm, transformers): how it recognises, loads, saves and describes a model.

`find` picks the library that a model belongs to; `hooks` tells a library of ours whenever it is imported.
"""
