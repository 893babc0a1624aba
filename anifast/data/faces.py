"""Where a face is in a picture. Finding it needs OpenCV, the extra `faces`; a box that is known needs nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from anifast.errors import AnifastError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SCALE = 1.3
"""Side of the box around a face, in longer sides of what the detector finds: the hair and the chin come in."""

# Detection takes a picture with a shorter side of this; and this part of it is put around, since a face that fills the
# picture is found by its borders.
_SIDE, _BORDER = 480, 0.25
# Tried one after the other: file, whether the contrast is stretched before, how many hits in one place make a face.
# The first is seldom wrong; the second finds more faces in bad light, and more that are none.
_CASCADES = (
    ("haarcascade_frontalface_alt2.xml", False, 3),
    ("haarcascade_frontalface_default.xml", False, 5),
    ("haarcascade_frontalface_default.xml", True, 5),
)


@dataclass(frozen=True)
class Box:
    """A square part of a picture: its left upper corner and its side, in pixels."""

    x: int
    y: int
    side: int

    def __str__(self) -> str:
        return f"{self.x},{self.y},{self.side}"

    def within(self, width: int, height: int) -> bool:
        """Whether it lies in a picture of this size."""
        return (
            self.side > 0 and min(self.x, self.y) >= 0 and self.x + self.side <= width and self.y + self.side <= height
        )

    def cut(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """H,W,C -> side,side,C of it; a view."""
        return pixels[self.y : self.y + self.side, self.x : self.x + self.side]


def middle(width: int, height: int) -> Box:
    """The largest centred square of a picture."""
    side = min(width, height)
    return Box((width - side) // 2, (height - side) // 2, side)


def around(face: tuple[int, int, int, int], width: int, height: int, scale: float = SCALE) -> Box:
    """The square around a face.

    Its side is `scale` times the longer side of the face and at most what the picture has. Where it would reach over
    the picture's edge it is moved inside, so it stays a square and nothing is distorted.

    Args:
        face: left, top, width, height of the face.
        width: of the picture; `height` likewise.
        scale: see above.
    """
    left, top, across, down = face
    side = min(round(max(across, down) * scale), width, height)
    x = round(left + (across - side) / 2)
    y = round(top + (down - side) / 2)
    return Box(min(max(x, 0), width - side), min(max(y, 0), height - side), side)


class FaceDetector:
    """Finds faces of people that look into the camera, by OpenCV's Haar cascades. Drawn faces are mostly not found.

    Raises:
        AnifastError: OpenCV is not installed, or one without cascades, as version 5 is.
    """

    def __init__(self) -> None:
        try:
            import cv2
        except ImportError as error:
            raise AnifastError(f'finding faces needs OpenCV ({error}): pip install "anifast[faces]"') from None
        self._cv2: Any = cv2
        if not hasattr(cv2, "CascadeClassifier"):
            raise AnifastError(
                f"finding faces needs the cascades that OpenCV has up to version 4 and {cv2.__version__} has not: "
                'pip install "anifast[faces]"'
            )
        folder = self._cv2.data.haarcascades
        self._cascades = {name: cv2.CascadeClassifier(folder + name) for name, _, _ in _CASCADES}
        for name, cascade in self._cascades.items():
            if cascade.empty():
                raise AnifastError(
                    f"finding faces: OpenCV {cv2.__version__} is installed without {name}: "
                    'pip install --force-reinstall "anifast[faces]"'
                )

    def find(self, pixels: NDArray[np.uint8]) -> tuple[int, int, int, int] | None:
        """The largest face in a picture.

        Args:
            pixels: uint8 H,W,3, RGB, any size.

        Returns:
            Left, top, width and height in pixels; None: no face found. Faces below an eighth of the shorter side are
            not looked for.
        """
        cv2 = self._cv2
        height, width = pixels.shape[:2]
        factor = _SIDE / min(height, width)
        size = (max(1, round(width * factor)), max(1, round(height * factor)))
        how = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
        grey = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), size, interpolation=how)
        border = round(_BORDER * _SIDE)
        grey = cv2.copyMakeBorder(grey, border, border, border, border, cv2.BORDER_REPLICATE)
        least = (_SIDE // 8, _SIDE // 8)
        for name, stretched, hits in _CASCADES:
            picture = cv2.equalizeHist(grey) if stretched else grey
            found = self._cascades[name].detectMultiScale(picture, scaleFactor=1.1, minNeighbors=hits, minSize=least)
            if len(found):
                x, y, across, down = max((tuple(map(int, face)) for face in found), key=lambda face: face[2] * face[3])
                return (
                    round((x - border) / factor),
                    round((y - border) / factor),
                    round(across / factor),
                    round(down / factor),
                )
        return None
