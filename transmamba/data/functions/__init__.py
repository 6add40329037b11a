"""Functions that are learnt in context: prompts without limit, each a function of (seed, row).

A part of this folder says how a function is drawn and what its prompt looks like; `draws` has the random
numbers, `prompts` what all of them share. Definitions, and which of them are the paper's (Park et al., arXiv
2402.04248): docs/in_context.md.
"""
