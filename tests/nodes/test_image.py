from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from dataflow.core.errors import ContractError, NodeError
from dataflow.core.schema import FieldType, Schema
from dataflow.testing import NodeResult, contract_of, run_node
from nodes.image import ImageDecode

FILES = Schema.of(name="string", data=FieldType("bytes", nullable=True))


def file_of(pixels: Any, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(pixels)).save(buffer, form, **options)
    return buffer.getvalue()


def decode(*files: bytes | None, **settings: Any) -> NodeResult:
    records = [{"name": str(at), "data": data} for at, data in enumerate(files)]
    return run_node(ImageDecode, FILES, records, {"field": "data", "as": "x", **settings})


COLOURS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3) * 10
GRAY = np.array([[0, 128, 255]], dtype=np.uint8)


@pytest.mark.parametrize(
    ("mode", "pixels"),
    [("rgb", COLOURS), ("rgba", np.concatenate([COLOURS, COLOURS[..., :1]], -1)), ("gray", GRAY)],
)
def test_png_is_decoded_exactly(mode: str, pixels: np.ndarray[Any, Any]) -> None:
    result = decode(file_of(pixels), mode=mode)
    assert result.failed == []
    assert result.out[0]["x"].dtype == np.uint8
    np.testing.assert_array_equal(result.out[0]["x"], pixels)
    assert result.out[0]["name"] == "0"


def test_jpeg_is_decoded_closely() -> None:
    flat = np.full((8, 16, 3), (200, 100, 50), dtype=np.uint8)
    found = decode(file_of(flat, "JPEG", quality=95)).out[0]["x"]
    assert found.shape == flat.shape
    assert np.abs(found.astype(int) - flat).max() <= 3


def test_modes_are_converted() -> None:
    np.testing.assert_array_equal(decode(file_of(GRAY), mode="rgb").out[0]["x"], np.stack([GRAY] * 3, -1))
    white = np.full((1, 1, 3), 255, dtype=np.uint8)
    assert decode(file_of(white), mode="gray").out[0]["x"].tolist() == [[255]]
    buffer = io.BytesIO()
    Image.fromarray(COLOURS).convert("P").save(buffer, "PNG")
    assert decode(buffer.getvalue()).out[0]["x"].shape == (2, 3, 3)


def test_images_may_have_different_sizes() -> None:
    result = decode(file_of(GRAY), file_of(np.zeros((4, 5), np.uint8)), mode="gray")
    assert [r["x"].shape for r in result.out] == [(1, 3), (4, 5)]


def test_a_declared_size_is_exact_or_made() -> None:
    files = (file_of(np.zeros((2, 3), np.uint8)), file_of(np.full((4, 6), 7, np.uint8)))
    exact = decode(*files, mode="gray", size=[2, 3])
    assert exact.parents["out"] == [0]
    assert exact.failed == [(1, "data: the image is 4 x 6, not 2 x 3")]
    resized = decode(*files, mode="gray", size=[2, 3], fit="resize")
    assert np.unique(resized.out[1]["x"]).tolist() == [7]
    assert resized.out[1]["x"].shape == (2, 3)


def test_the_orientation_of_a_photo_is_applied() -> None:
    photo = Image.fromarray(np.zeros((2, 4, 3), np.uint8))
    exif = photo.getexif()
    exif[0x0112] = 6  # the camera was held upright
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", exif=exif)
    assert decode(buffer.getvalue()).out[0]["x"].shape == (4, 2, 3)


def test_what_is_no_image_fails_alone() -> None:
    good = file_of(COLOURS)
    tiff = file_of(COLOURS, "TIFF")
    deep = file_of(np.zeros((1, 1), np.uint16))
    result = decode(good, b"", b"not an image", good[: len(good) // 2], None, tiff, deep, good)
    assert result.parents["out"] == [0, 7]
    reasons = dict(result.failed)
    assert set(reasons) == {1, 2, 3, 4, 5, 6}
    assert reasons[2].startswith("data: 12 bytes are no PNG or JPEG image")
    assert reasons[4] == "data: null is no image"
    assert reasons[6] == "data: an image of mode I;16 is not of 8 bits a channel"


def test_a_small_file_of_a_huge_image_is_not_decompressed() -> None:
    huge = file_of(np.zeros((5_000, 5_000), np.uint8))
    assert len(huge) < 50_000
    result = decode(huge, file_of(GRAY), mode="gray")
    assert result.failed == [(0, "data: 5000 x 5000 pixels, at most 16000000 are read")]
    assert result.parents["out"] == [1]
    assert decode(file_of(GRAY), mode="gray", max_pixels=2).failed == [
        (0, "data: 3 x 1 pixels, at most 2 are read")
    ]


def test_contract() -> None:
    def out(keep: Any = None, **settings: Any) -> str:
        return contract_of(ImageDecode, FILES, {"field": "data", **settings}, keep=keep)["out"].describe()

    assert out() == "name: string, data: uint8[?,?,3]"
    assert out(mode="gray", size=[28, 28]) == "name: string, data: uint8[28,28]"
    assert out(["data"], mode="rgba", **{"as": "x"}) == "data: bytes?, x: uint8[?,?,4]"
    with pytest.raises(ContractError, match="'name' is string, not bytes"):
        out(field="name")
    with pytest.raises(ContractError, match="no field 'dat' in the input"):
        out(field="dat")
    with pytest.raises(ContractError, match="field 'data' is there already"):
        out(["data"])
    with pytest.raises(ContractError, match="field 'name' is there already"):
        out(**{"as": "name"})
    with pytest.raises(ContractError, match="fit: has no effect without size"):
        out(fit="resize")
    with pytest.raises(ValidationError):
        out(size=[0, 3])


def test_without_pillow_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    with pytest.raises(NodeError, match="needs Pillow") as caught:
        decode(file_of(GRAY))
    assert caught.value.hint == "pip install 'kafka-dataflow[image]'"
