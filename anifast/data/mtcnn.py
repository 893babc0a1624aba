"""Faces and their landmarks in pictures: the three cascaded networks of MTCNN (Zhang et al. 2016), run here by PyTorch.

Their weights are those of the package `mtcnn` (MIT), the extra `align`: it brings them along, so nothing is downloaded,
and needs no other framework for that. Five landmarks are what aligning a face takes. Painted faces that look like
people are mostly found, few of those of anime are.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from anifast.data.align import Points
from anifast.errors import AnifastError

_INSTALL = 'pip install "anifast[align]"'
# The shapes of each network's convolutions (out, in, side), of its dense layer (out, in), and of its outputs: the box,
# the landmarks (of the last one) and no face / face.
_CONVOLUTIONS = {
    "p": ((10, 3, 3), (16, 10, 3), (32, 16, 3)),
    "r": ((28, 3, 3), (48, 28, 3), (64, 48, 2)),
    "o": ((32, 3, 3), (64, 32, 3), (64, 64, 3), (128, 64, 2)),
}
_DENSE = {"r": (128, 576), "o": (256, 1152)}
_OUTPUTS = {"p": (4, 2), "r": (4, 2), "o": (4, 10, 2)}
# Windows of max pooling behind the convolutions, with a stride of 2; 0: none.
_POOLS = {"p": (2, 0, 0), "r": (3, 3, 0), "o": (3, 3, 2, 0)}
# What each network looks at, and how sure it has to be (the paper's, the last one stricter).
_CELL, _SIDES = 12, {"r": 24, "o": 48}
_SURE = {"p": 0.6, "r": 0.7, "o": 0.9}
_STEP = 0.709  # between sizes of the pyramid, the square root of a half
# Faces below so many parts of the longer side are looked for only where there is none above.
_FACES = (1 / 10, 1 / 50)
_SMALLEST = 20
# The last network looks again at the face it found, at boxes moved by so many sides, and the median of what it says
# counts: one look alone has the resolution of 48 pixels.
_LOOKS = tuple((x, y) for x in (-0.05, 0.0, 0.05) for y in (-0.05, 0.0, 0.05))
# Boxes that the second and third network look at, at most: the surest ones.
_MOST = 256


class FaceLandmarks:
    """Finds faces and five landmarks of each.

    Raises:
        AnifastError: the weights are not installed.
    """

    def __init__(self) -> None:
        self._nets = {name: _Net(name, arrays) for name, arrays in _weights().items()}

    @torch.inference_mode()
    def find(self, pixels: NDArray[np.uint8]) -> list[Points]:
        """The faces in a picture, the largest first.

        Args:
            pixels: uint8 H,W,3, RGB, any size.

        Returns:
            Four points of each. Faces below 20 pixels, or a fiftieth of the longer side, are not looked for.
        """
        image = Image.fromarray(pixels)
        for part in _FACES:
            boxes = self._proposed(image, max(_SMALLEST, part * max(image.size)))
            boxes = self._refined(image, boxes)
            marked = self._marked(image, boxes)
            if marked:
                return marked
        return []

    def _proposed(self, image: Image.Image, smallest: float) -> Tensor:
        """Squares [n, 4] (left, top, right, bottom) where the first network suspects faces."""
        found = []
        scale = _CELL / smallest
        while scale * min(image.size) >= _CELL:
            size = (math.ceil(image.width * scale), math.ceil(image.height * scale))
            small = _tensor(image.resize(size, Image.Resampling.BILINEAR))
            offsets, scores = (output[0] for output in self._nets["p"](small[None]))
            rows, columns = torch.where(scores[1] > _SURE["p"])
            corner = 2 * torch.stack((columns, rows), 1).float()
            ratio = torch.tensor([image.width / size[0], image.height / size[1]])
            boxes = torch.cat((corner * ratio, (corner + _CELL) * ratio), 1)
            score = scores[1, rows, columns]
            keep = _suppressed(boxes, score, 0.5)
            found.append(torch.cat((boxes[keep], offsets[:, rows, columns].T[keep], score[keep, None]), 1))
            scale *= _STEP
        if not found:
            return torch.empty(0, 4)
        boxes, offsets, score = torch.cat(found).split((4, 4, 1), 1)
        keep = _suppressed(boxes, score[:, 0], 0.7)[:_MOST]
        return _square(_moved(boxes[keep], offsets[keep]))

    def _refined(self, image: Image.Image, boxes: Tensor) -> Tensor:
        """Those squares that the second network takes for faces, moved to where it sees them."""
        boxes, crops = _crops(image, boxes, _SIDES["r"])
        offsets, scores = self._nets["r"](crops)
        sure = scores[:, 1] > _SURE["r"]
        boxes, offsets, score = boxes[sure], offsets[sure], scores[sure, 1]
        keep = _suppressed(boxes, score, 0.7)
        return _square(_moved(boxes[keep], offsets[keep]))

    def _marked(self, image: Image.Image, boxes: Tensor) -> list[Points]:
        """The landmarks of those that the third network takes for faces."""
        boxes, crops = _crops(image, boxes, _SIDES["o"])
        offsets, _, scores = self._nets["o"](crops)
        sure = scores[:, 1] > _SURE["o"]
        boxes, score = _moved(boxes[sure], offsets[sure]), scores[sure, 1]
        boxes = boxes[_suppressed(boxes, score, 0.7, of_smaller=True)]
        areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        marked = (self._landmarks(image, box) for box in _square(boxes[areas.argsort(descending=True)]))
        return [points for points in marked if points is not None]

    def _landmarks(self, image: Image.Image, box: Tensor) -> Points | None:
        """Where the last network sees the eyes and the mouth of the face in a box."""
        moved = box + ((box[2] - box[0]) * torch.tensor(_LOOKS)).repeat(1, 2)
        boxes, crops = _crops(image, moved, _SIDES["o"])
        if not len(boxes):
            return None
        marks = self._nets["o"](crops)[1].unflatten(1, (2, 5)).transpose(1, 2)  # [n, 5, (x, y)] in sides of the box
        marks = boxes[:, None, :2] + marks * (boxes[:, 2:] - boxes[:, :2])[:, None]
        return Points.of_5(marks.quantile(0.5, 0).double().numpy())


class _Net:
    """One of the three networks.

    Args:
        name: p, r or o.
        arrays: its weights in Keras' order and layouts: kernel, bias and slopes of each layer, then its outputs.
    """

    def __init__(self, name: str, arrays: list[NDArray[np.float32]]) -> None:
        self._name = name
        weights = [torch.from_numpy(np.array(array, dtype=np.float32)) for array in arrays]
        layers = len(_CONVOLUTIONS[name]) + (name in _DENSE)
        self._layers = [tuple(weights[3 * i : 3 * i + 3]) for i in range(layers)]
        self._outputs = [(weights[i], weights[i + 1]) for i in range(3 * layers, len(weights), 2)]

    def __call__(self, x: Tensor) -> list[Tensor]:
        """N,3,H,W in [-1, 1] -> the outputs, N,C or, of the first network, N,C,H,W; the last one as probabilities."""
        for (kernel, bias, slope), pool in zip(self._layers, _POOLS[self._name], strict=False):
            x = F.prelu(F.conv2d(x, kernel.permute(3, 2, 0, 1), bias), slope.flatten())
            if pool:
                x = F.max_pool2d(x, pool, 2, ceil_mode=True)
        if self._name in _DENSE:
            kernel, bias, slope = self._layers[-1]
            x = F.prelu(F.linear(x.permute(0, 3, 2, 1).flatten(1), kernel.T, bias), slope)
            outputs = [F.linear(x, kernel.T, bias) for kernel, bias in self._outputs]
        else:
            outputs = [F.conv2d(x, kernel.permute(3, 2, 0, 1), bias) for kernel, bias in self._outputs]
        return [*outputs[:-1], outputs[-1].softmax(1)]


def _shapes(name: str) -> list[tuple[int, ...]]:
    """The shapes of a network's arrays in its file, up to ones: kernels are height, width, in, out."""
    shapes: list[tuple[int, ...]] = []
    for out, channels, side in _CONVOLUTIONS[name]:
        shapes += [(side, side, channels, out), (out,), (out,)]
    width = _CONVOLUTIONS[name][-1][0]
    if name in _DENSE:
        width, channels = _DENSE[name]
        shapes += [(channels, width), (width,), (width,)]
    for out in _OUTPUTS[name]:
        shapes += [(width, out), (out,)]
    return shapes


def _weights() -> dict[str, list[NDArray[np.float32]]]:
    """The arrays of the three networks, from the package `mtcnn`; the package itself is not imported."""
    spec = importlib.util.find_spec("mtcnn")
    try:
        import joblib
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        raise AnifastError(
            f"finding faces needs the weights that the package mtcnn brings: {_INSTALL}. Or give the faces' landmarks"
        )
    weights: dict[str, list[NDArray[np.float32]]] = {}
    for name in _OUTPUTS:
        path = Path(spec.origin).parent / "assets" / "weights" / f"{name}net.lz4"
        try:
            arrays: Any = joblib.load(path)
            found = [tuple(n for n in array.shape if n > 1) for array in arrays]
        except Exception as error:  # unpickling raises whatever it likes
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            raise AnifastError(
                f"finding faces needs mtcnn 1.0 with its weights, and {path} cannot be read ({reason}): "
                f"pip install --force-reinstall of it, as in {_INSTALL}"
            ) from error
        if found != [tuple(n for n in shape if n > 1) for shape in _shapes(name)]:
            raise AnifastError(f"{path}: holds other weights than those of mtcnn 1.0: {_INSTALL}")
        weights[name] = arrays
    return weights


def _tensor(image: Image.Image) -> Tensor:
    """An RGB picture as float 3,H,W in [-1, 1], as the networks were trained."""
    return (torch.from_numpy(np.array(image)).permute(2, 0, 1).float() - 127.5) / 128


def _crops(image: Image.Image, boxes: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Parts of a picture at side x side, black where there is no picture, as in training.

    Returns:
        The boxes that have some of the picture, and N,3,side,side of them.
    """
    kept, crops = [], []
    for box in boxes:
        left, top, right, bottom = box.tolist()
        inner = (max(left, 0.0), max(top, 0.0), min(right, image.width), min(bottom, image.height))
        scale = side / max(right - left, 1e-6)
        place = (round((inner[0] - left) * scale), round((inner[1] - top) * scale))
        size = (round((inner[2] - left) * scale) - place[0], round((inner[3] - top) * scale) - place[1])
        if min(size) < 1 or inner[2] - inner[0] < 1 or inner[3] - inner[1] < 1:
            continue
        crop = Image.new("RGB", (side, side))
        crop.paste(image.resize(size, Image.Resampling.BILINEAR, box=inner), place)
        kept.append(box)
        crops.append(_tensor(crop))
    if not crops:
        return boxes.new_empty(0, 4), torch.empty(0, 3, side, side)
    return torch.stack(kept), torch.stack(crops)


def _moved(boxes: Tensor, offsets: Tensor) -> Tensor:
    """Boxes with their edges moved by offsets in sides."""
    return boxes + offsets * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)


def _square(boxes: Tensor) -> Tensor:
    """Squares of the longer side around the same centres."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (boxes[:, 2:] - boxes[:, :2]).amax(1, keepdim=True) / 2
    return torch.cat((centres - half, centres + half), 1)


def _suppressed(boxes: Tensor, scores: Tensor, most: float, *, of_smaller: bool = False) -> Tensor:
    """Indices of boxes, the surest first, without those that overlap a surer one by more than `most`.

    An overlap is intersection over union, or over the smaller of both.
    """
    order = scores.argsort(descending=True)
    boxes = boxes[order]
    areas = (boxes[:, 2:] - boxes[:, :2]).clamp(min=0).prod(1)
    kept: list[int] = []
    alive = torch.ones(len(boxes), dtype=torch.bool)
    for i in range(len(boxes)):
        if not alive[i]:
            continue
        kept.append(i)
        low = torch.maximum(boxes[i, :2], boxes[:, :2])
        high = torch.minimum(boxes[i, 2:], boxes[:, 2:])
        common = (high - low).clamp(min=0).prod(1)
        total = torch.minimum(areas[i], areas) if of_smaller else areas[i] + areas - common
        alive &= common <= most * total
    return order[torch.tensor(kept, dtype=torch.long)]
