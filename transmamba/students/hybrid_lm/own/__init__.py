"""The class of our own that holds what no class of transformers does. Its files are copied beside the weights
(`auto_map`), so that they import torch, transformers and each other alone, and are plain to who reads them
there: SPDX-License-Identifier: Apache-2.0."""
