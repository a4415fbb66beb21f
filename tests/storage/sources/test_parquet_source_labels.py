"""A Parquet file's label column gives the right label, none, or a clear refusal (FAULTS 30)."""

import datetime
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.lru_cache import LruCache
from eupe_pipeline.storage.images.indexing import build_index
from eupe_pipeline.storage.images.verify_source import verify_source
from eupe_pipeline.storage.sources import parquet_rows
from eupe_pipeline.storage.store import FeatureStore

from ...fault_log import Trials
from ..damaged_tars import indexed, pack, picture

NAN = float("nan")
STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def table(labels: Any, names: Any = None, column: str = "label", images: Any = None) -> pa.Table:
    """As many images as labels; `names` are the classes that Hugging Face's metadata declare."""
    count = 3 if labels is None else len(labels)
    cells = pa.array([{"bytes": picture(n), "path": None} for n in range(count)], STRUCT) if images is None else images
    made = pa.table({"image": cells, **({} if labels is None else {column: labels})})
    if names is None:
        return made
    features = {"image": {"_type": "Image"}, column: {"names": names, "_type": "ClassLabel"}}
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


@pytest.fixture
def store(tmp_path: Path) -> FeatureStore:
    return FeatureStore.create(str(tmp_path / "store"))


def source(folder: Path, **tables: pa.Table) -> Path:
    folder.mkdir(exist_ok=True)
    for name, one in tables.items():
        pq.write_table(one, folder / f"{name}.parquet", row_group_size=2)
    return folder


INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64()]
RIGHT: dict[str, tuple[Any, list[str | None]]] = {
    **{f"{kind}": (pa.array([10, -1, None, 9], kind), ["10", None, None, "9"]) for kind in INTEGERS},
    **{f"{kind}": (pa.array([10, 255, None], kind), ["10", "255", None]) for kind in (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())},
    **{f"{kind}": (pa.array([10.0, -1.0, None, NAN, 9.0], kind), ["10", None, None, None, "9"]) for kind in (pa.float32(), pa.float64())},
    "fractions": (pa.array([0.5, 10.5, 9.5]), ["0.5", "10.5", "9.5"]),
    "decimals": (pa.array([Decimal("10.00"), Decimal("-1.00"), None, Decimal("9.50")]), ["10", None, None, "9.5"]),
    "bool": (pa.array([True, None, False]), ["True", None, "False"]),
    "text": (pa.array(["cat", " a  dog ", None, "-1", "7"]), ["cat", "a dog", None, None, "7"]),
    "large text": (pa.array(["cat", None], pa.large_string()), ["cat", None]),
    "bytes": (pa.array([b"cat", b"\xff\xfe", None]), ["cat", None, None]),
    "a dictionary of text": (pa.array(["cat", "dog", None, "cat"]).dictionary_encode(), ["cat", "dog", None, "cat"]),
    "a dictionary of numbers": (pa.array([7, -1, None, 7]).dictionary_encode(), ["7", None, None, "7"]),
    "nothing": (pa.nulls(3), [None, None, None]),
    "no column": (None, [None, None, None]),
    "empty and endless texts": (pa.array(["", "x" * 201, "ok"]), [None, None, "ok"]),
}


@pytest.mark.fault
@pytest.mark.parametrize("case", RIGHT)
def test_labels_of_each_type_are_numbers_names_or_none(store: FeatureStore, tmp_path: Path, case: str) -> None:
    labels, wanted = RIGHT[case]
    with Trials(30) as trials:
        for number, column in enumerate(("label", "cls")):
            dataset, found = indexed(store, source(tmp_path / str(number), a=table(labels, column=column)))
            assert list(found.values()) == wanted
            assert dataset.labels().tolist() == [-1 if text is None else dataset.label_names.index(text) for text in wanted]
            verify_source(dataset)
            trials.note("right")


def test_what_stands_for_no_label_is_counted_unless_it_is_null(store: FeatureStore, tmp_path: Path) -> None:
    dataset, _ = indexed(store, source(tmp_path / "a", a=table(pa.array([-1.0, NAN, None, NAN, float("inf"), 3.0]))))
    assert dataset.left_out == {
        "labels of -1, which stands for none": 1,
        "labels of NaN, which stands for none": 2,
        "labels that cannot be read": 1,
    }


def test_numbers_are_sorted_as_numbers_wherever_they_come_from(store: FeatureStore, tmp_path: Path) -> None:
    labels = pa.array([10, -2, 9, -10, 0])
    dataset, _ = indexed(store, source(tmp_path / "a", a=table(labels)))
    assert dataset.label_names == ["-10", "-2", "0", "9", "10"]
    assert [dataset.label_names[number] for number in dataset.labels()] == ["10", "-2", "9", "-10", "0"]
    (tmp_path / "b").mkdir()
    members = {f"{n}.{end}": data for n, text in enumerate(["10", "-2", "9", "x", "0.5"]) for end, data in
               (("png", picture(n)), ("cls", text.encode()))}  # fmt: skip
    (tmp_path / "b/a.tar").write_bytes(pack(members))
    assert indexed(store, tmp_path / "b")[0].label_names == ["-2", "0.5", "9", "10", "x"]


NESTED: dict[str, Any] = {
    "lists": pa.array([[1], [2, 3]]),
    "lists of fixed size": pa.array([[1, 2], [2, 3]], pa.list_(pa.int64(), 2)),
    "lists of text": pa.array([["cat"], []]),
    "structs": pa.array([{"a": 1}, {"a": 2}]),
    "maps": pa.array([[("a", 1)], []], pa.map_(pa.string(), pa.int64())),
    "dates": pa.array([datetime.date(2020, 1, 1)] * 2),
}


@pytest.mark.fault
@pytest.mark.parametrize("case", NESTED)
def test_columns_in_which_no_value_is_the_class_are_refused_by_name(store: FeatureStore, tmp_path: Path, case: str) -> None:
    with Trials(30) as trials:
        with pytest.raises(BadInput, match=r"a\.parquet, column labels: labels of type"):
            indexed(store, source(tmp_path / "a", a=table(NESTED[case], column="labels")))
        trials.note("detected")


@pytest.mark.fault
@pytest.mark.parametrize("kind", [*INTEGERS, pa.float64()])
def test_class_names_of_the_metadata_keep_their_order_and_numbers(store: FeatureStore, tmp_path: Path, kind: pa.DataType) -> None:
    names, labels = ["zebra", "ant", "unused", "2"], [1, 0, -1, None, 3, 0]
    with Trials(30) as trials:
        tables = {"a": table(pa.array(labels, kind), names), "b": table(pa.array([0, 1], kind), names)}
        dataset, found = indexed(store, source(tmp_path / "a", **tables))
        assert dataset.label_names == names
        assert dataset.labels().tolist() == [1, 0, -1, -1, 3, 0, 0, 1]
        assert found["a.parquet/0"] == "ant"
        trials.note("right")


@pytest.mark.fault
def test_class_names_that_do_not_fit_are_refused(store: FeatureStore, tmp_path: Path) -> None:
    one, numbers = table(pa.array([0, 1]), ["cat", "dog"]), pa.array([0, 1])
    wrong: dict[str, tuple[dict[str, pa.Table], str]] = {
        "another list": ({"a": one, "b": table(numbers, ["dog", "cat"])}, r"a\.parquet and b\.parquet name other classes: number 0"),
        "a longer list": ({"a": one, "b": table(numbers, ["cat", "dog", "x"])}, "number 2 is None in one and 'x'"),
        "numbers beside names": ({"a": one, "b": table(numbers)}, r"labels that are none of them: 0, 1"),
        "a class too many": ({"a": table(pa.array([0, 2]), ["cat", "dog"])}, "row 1: 2 is none of the 2 classes"),
        "a negative one": ({"a": table(pa.array([0, -2]), ["cat", "dog"])}, "row 1: -2 is none"),
        "a fraction": ({"a": table(pa.array([0, 0.5]), ["cat", "dog"])}, r"row 1: 0\.5 is none"),
        "a name twice": ({"a": table(numbers, ["cat", "cat"])}, "names the class 'cat' twice"),
        "no list": ({"a": table(numbers, "cat dog")}, "are no list of names"),
        "no text": ({"a": table(numbers, ["cat", 1])}, "are no list of names"),
        "broken": ({"a": table(numbers).replace_schema_metadata({"huggingface": "{"})}, "cannot be read"),
    }
    with Trials(30) as trials:
        for number, (tables, match) in enumerate(wrong.values()):
            with pytest.raises(BadInput, match=match):
                indexed(store, source(tmp_path / str(number), **tables))
            trials.note("detected")
    foreign = table(numbers).replace_schema_metadata(
        {"huggingface": '{"info": {"features": {"label": {"dtype": "int64", "_type": "Value"}}}}'}
    )
    assert indexed(store, source(tmp_path / "value", a=foreign))[0].label_names == ["0", "1"]


@pytest.mark.fault
def test_a_table_without_images_is_left_out_beside_its_tar_alone(store: FeatureStore, tmp_path: Path) -> None:
    captions = pa.table({"key": ["0"], "url": ["http://x"], "caption": ["a cat"], "status": ["success"]})
    folder = source(tmp_path / "a", **{"00000": captions})
    said: list[str] = []
    with Trials(30) as trials:
        with pytest.raises(BadInput, match=r"00000\.parquet has no column of images .*it has key, url, caption, status"):
            indexed(store, folder)
        (folder / "00001.tar").write_bytes(pack({"0.png": picture(1)}))
        with pytest.raises(BadInput, match="has no column of images"):
            indexed(store, folder)
        trials.note("detected", 2)
        (folder / "00000.tar").write_bytes(pack({"0.png": picture(0)}))
        dataset = build_index(store.objects, str(folder), "x", on_event=lambda event: said.append(event.get("text", "")))
        assert dataset.ids(0, len(dataset)) == ["00000.tar/0.png", "00001.tar/0.png"]
        assert dataset.left_out == {"tables without images beside a tar of the same name (img2dataset writes them)": 1}
        assert any("tables without images beside a tar" in line and "00000.parquet" in line for line in said)
        with pytest.raises(BadInput, match="has no column of images"):
            indexed(store, folder / "00000.parquet")  # which is all that was asked for
        trials.note("right")


@pytest.mark.fault
def test_images_are_bytes_whatever_holds_them_and_a_path_is_none(store: FeatureStore, tmp_path: Path) -> None:
    cells = [picture(n) for n in range(3)]
    kinds: list[Any] = [pa.binary(), pa.large_binary(), STRUCT, pa.struct([("path", pa.string()), ("bytes", pa.large_binary())])]
    with Trials(30) as trials:
        for number, kind in enumerate(kinds):
            values = [{"bytes": cell, "path": "x"} for cell in cells] if pa.types.is_struct(kind) else cells
            dataset, _ = indexed(store, source(tmp_path / str(number), a=table([1, 2, 3], images=pa.array(values, kind))))
            assert [dataset.read_image_bytes(n) for n in range(3)] == cells
            trials.note("right")
        paths = pa.array([{"bytes": None, "path": "1.png"}] * 2, STRUCT)
        with pytest.raises(BadInput, match="only the path of an image, not its bytes"):
            indexed(store, source(tmp_path / "paths", a=table([1, 2], images=paths)))
        for number, other in enumerate((pa.array(["1.png", "2.png"]), pa.array([[b"1"], [b"2"]]))):
            with pytest.raises(BadInput, match=r"its column image is of type .*, not the bytes of an image"):
                indexed(store, source(tmp_path / f"other{number}", a=table([1, 2], images=other)))
        trials.note("detected", 3)


@pytest.mark.fault
@pytest.mark.parametrize("batch_bytes", [64 << 20, 300])
def test_a_footer_is_read_once_and_large_groups_in_pieces(
    store: FeatureStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, batch_bytes: int
) -> None:
    monkeypatch.setattr(parquet_rows, "_FOOTERS", LruCache[Any, Any](64))
    monkeypatch.setattr(parquet_rows, "_GROUPS", LruCache[Any, Any](1, lambda column: column.nbytes))
    monkeypatch.setattr(parquet_rows, "_BATCH_BYTES", batch_bytes)
    pq.write_table(table(list(range(40))), source(tmp_path / "a") / "a.parquet", row_group_size=3)
    footers: list[bool] = []
    real = pq.ParquetFile.__init__

    def opened(self: Any, *arguments: Any, metadata: Any = None, **values: Any) -> None:
        footers.append(metadata is None)
        real(self, *arguments, metadata=metadata, **values)

    monkeypatch.setattr(pq.ParquetFile, "__init__", opened)
    with Trials(30) as trials:
        dataset, found = indexed(store, tmp_path / "a")
        assert (list(found.values()), dataset.labels().tolist()) == ([str(n) for n in range(40)], list(range(40)))
        footers.clear()
        assert [dataset.read_image_bytes(n) for n in (39, *range(39))] == [picture(n) for n in (39, *range(39))]
        assert sum(footers) == 1
        trials.note("right")


@pytest.mark.long
@pytest.mark.fault(30, "right")
def test_a_row_group_above_two_gigabytes_is_read(store: FeatureStore, tmp_path: Path) -> None:
    """Pictures padded with zeros to 60 MB each, 36 in one group."""
    batch = pa.record_batch({"image": pa.array([{"bytes": picture(1) + bytes(60_000_000), "path": "x"}], STRUCT)})
    folder = source(tmp_path / "a")
    pq.write_table(pa.Table.from_batches([batch] * 36), folder / "a.parquet", row_group_size=36, compression="zstd", use_dictionary=False)
    assert pq.ParquetFile(folder / "a.parquet").metadata.row_group(0).total_byte_size > 2 << 30
    dataset, found = indexed(store, folder)
    assert len(found) == 36
    assert dataset.read_image(35).shape == dataset.read_image(0).shape
