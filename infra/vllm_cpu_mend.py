"""Lets a CUDA build of torchvision be imported beside a CPU build of torch: declares the operators it looks up.

Copied by infra/setup_vllm.sh into vLLM's own environment and loaded there at start; the product never imports it.
"""

import importlib.abc
import sys

_kept = []


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Declares the operators when torchvision is first imported, and finds nothing itself."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            library = torch.library.Library("torchvision", "DEF")
            library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _kept.append(library)  # the operators live as long as this does


sys.meta_path.insert(0, _BeforeTorchvision())
