"""The contract of a source of images, as a class of tests that any source can run: of any container, on any file system.

Subclass it under a name that begins with `Test`, and set `url`, `images` and `labels` in the class or in a fixture. It uses plain asserts
and nothing of pytest, so that it can be imported anywhere.
"""

from collections.abc import Mapping

from ..core.choices import CONTAINERS
from ..core.errors import BadInput
from .source_items import ClassNames, LeftOut, SourceImage, TarEnd
from .sources import list_files, open_source, read_bytes, walk


class ImageSourceContract:
    """The tests of one source whose content is known."""

    url: str
    """The folder or file, on this machine or elsewhere."""
    images: Mapping[str, bytes]
    """The bytes of all its images, by id: path, then `/member` of a tar or `/row` of a table."""
    labels: Mapping[str, str | None]
    """Their labels, None for an image without one."""

    def walk_all(self) -> tuple[dict[str, SourceImage], dict[str, str | None], list[str]]:
        """Return the images by id in the order of the walk, their labels, and the files; fail for lost samples."""
        filesystem, root = open_source(self.url)
        images: dict[str, SourceImage] = {}
        labels: dict[str, str | None] = {}
        files = list_files(filesystem, root)
        for path in files:
            for item in walk(filesystem, root, path):
                if isinstance(item, SourceImage):
                    assert item.image_id not in images
                    images[item.image_id], labels[item.image_id] = item, item.label
                elif isinstance(item, TarEnd):
                    labels |= item.labels
                else:
                    assert isinstance(item, (ClassNames, LeftOut)), item
        return images, labels, files

    def test_every_image_is_found_once_with_its_bytes_and_its_label(self) -> None:
        """Check that nothing else is taken for an image, either."""
        images, labels, _ = self.walk_all()
        assert {name: image.data for name, image in images.items()} == dict(self.images)
        assert labels == dict(self.labels)

    def test_each_walk_goes_in_the_same_order_of_files(self) -> None:
        """Check the order, which numbers the rows of a dataset."""
        first, _, files = self.walk_all()
        again, _, _ = self.walk_all()
        assert list(first) == list(again)
        assert files == sorted(set(files))
        assert [image.path for image in first.values()] == sorted(image.path for image in first.values())

    def test_an_image_says_where_it_lies(self) -> None:
        """Check that an id begins with its file's path, and that an index can hold the container."""
        images, _, files = self.walk_all()
        for name, image in images.items():
            assert image.path in files
            assert name == image.path if image.container == "file" else name.startswith(f"{image.path}/")
            assert image.container in CONTAINERS
            assert image.offset >= 0

    def test_an_image_is_read_again_from_where_it_was_found(self) -> None:
        """Check reads by location, in any order."""
        for image in reversed(self.walk_all()[0].values()):
            assert read_bytes(self.url, image.path, image.container, image.offset, len(image.data)) == image.data

    def test_a_file_that_is_gone_is_an_error_of_the_operating_system(self) -> None:
        """Check for OSError, on which a reader tries the dataset's other locations."""
        image = next(iter(self.walk_all()[0].values()))
        folder, _, name = image.path.rpartition("/")
        try:
            read_bytes(self.url, f"{folder}/gone {name}".lstrip("/"), image.container, image.offset, len(image.data))
        except OSError:
            return
        raise AssertionError("a file that is not there was read")

    def test_a_source_that_is_not_there_is_the_users_to_mend(self) -> None:
        """Check for `BadInput` that names the source."""
        missing = f"{self.url.rstrip('/')}-not-there"
        message = ""
        try:
            open_source(missing)
        except BadInput as error:
            message = str(error)
        assert "not-there" in message
