"""The words every room speaks: batch, layout, output, tower, task, preprocessing. Imports torch, nothing of
ours."""
