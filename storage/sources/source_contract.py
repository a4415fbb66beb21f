"""What every source of images must do, as a class of tests that anybody's source can run: of any container, on any file system.

Subclass it under a name that begins with `Test`, and give it `url`, `images` and `labels`, in the class or in a fixture that sets them on
`self`. Plain asserts and nothing of pytest, so that it can be imported anywhere.
"""

from collections.abc import Mapping

from ..core.choices import CONTAINERS
from ..core.errors import BadInput
from .found import ClassNames, LeftOut, SourceImage, TarEnd
from .sources import list_files, open_source, read_bytes, walk


class ImageSourceContract:
    """The tests of one source whose content is known."""

    url: str
    """The folder or file, on this machine or elsewhere."""
    images: Mapping[str, bytes]
    """The bytes of all its images, by id: path, then `/member` of a tar or `/row` of a table."""
    labels: Mapping[str, str | None]
    """Their labels, None for an image without one."""

    def walked(self) -> tuple[dict[str, SourceImage], dict[str, str | None], list[str]]:
        """Return the images by id in the order of the walk, their labels, and the files; fail for anything that is no image."""
        filesystem, root = open_source(self.url)
        images: dict[str, SourceImage] = {}
        labels: dict[str, str | None] = {}
        files = list_files(filesystem, root)
        for path in files:
            for found in walk(filesystem, root, path):
                if isinstance(found, SourceImage):
                    assert found.image_id not in images
                    images[found.image_id], labels[found.image_id] = found, found.label
                elif isinstance(found, TarEnd):
                    labels |= found.labels
                else:
                    assert isinstance(found, (ClassNames, LeftOut)), found
        return images, labels, files

    def test_every_image_is_found_once_with_its_bytes_and_its_label(self) -> None:
        """And nothing else is taken for an image."""
        images, labels, _ = self.walked()
        assert {name: one.data for name, one in images.items()} == dict(self.images)
        assert labels == dict(self.labels)

    def test_each_walk_goes_in_the_same_order_of_files(self) -> None:
        """Rows of a dataset are numbered by it."""
        first, _, files = self.walked()
        again, _, _ = self.walked()
        assert list(first) == list(again)
        assert files == sorted(set(files))
        assert [one.path for one in first.values()] == sorted(one.path for one in first.values())

    def test_an_image_says_where_it_lies(self) -> None:
        """Its id begins with its file's path, and its container is one that an index can hold."""
        images, _, files = self.walked()
        for name, one in images.items():
            assert one.path in files
            assert name == one.path if one.container == "file" else name.startswith(f"{one.path}/")
            assert one.container in CONTAINERS
            assert one.offset >= 0

    def test_an_image_is_read_again_from_where_it_was_found(self) -> None:
        """In any order."""
        for one in reversed(self.walked()[0].values()):
            assert read_bytes(self.url, one.path, one.container, one.offset, len(one.data)) == one.data

    def test_a_file_that_is_gone_is_an_error_of_the_operating_system(self) -> None:
        """A reader then asks the dataset's other places."""
        one = next(iter(self.walked()[0].values()))
        folder, _, name = one.path.rpartition("/")
        try:
            read_bytes(self.url, f"{folder}/gone {name}".lstrip("/"), one.container, one.offset, len(one.data))
        except OSError:
            return
        raise AssertionError("a file that is not there was read")

    def test_a_source_that_is_not_there_is_the_users_to_mend(self) -> None:
        """The error names it."""
        missing = f"{self.url.rstrip('/')}-not-there"
        said = ""
        try:
            open_source(missing)
        except BadInput as error:
            said = str(error)
        assert "not-there" in said
