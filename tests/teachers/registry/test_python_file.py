"""FILE.py:FUNCTION as a teacher: what decides its identity, what travels, and what is refused before a store has anything of it."""

import pickle
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from eupe_pipeline.storage.core.errors import BadInput
from eupe_pipeline.storage.core.identity import digest, file_sha256
from eupe_pipeline.teachers.registry.canary import canary_images
from eupe_pipeline.teachers.registry.python_file import tensors_sha256
from eupe_pipeline.teachers.registry.resolve import absolute_name, load_teacher, resolve_teacher

from ..own_teachers import own_file

RETURNS = "return self.pool(patch.amax(dim=(1, 2))), patch"
DECLARES = 'OwnTeacher(net, name="my-net", size_px=64, stride_px=16, cls="attention pool")'


def identity(name: str, **options: object) -> str:
    return digest(resolve_teacher(name, **options).identity())  # type: ignore[arg-type]


class TestIdentity:
    def test_it_says_source_function_weights_and_what_is_declared_and_no_path(self, tmp_path: Path) -> None:
        name = own_file(tmp_path)
        spec = resolve_teacher(name)
        assert spec.identity()["architecture"] == {
            "name": "python-file", "function": "build", "source_sha256": file_sha256(tmp_path / "my_teacher.py"),
            "weights": "the module's", "cls": "attention pool", "width": 48, "stride_px": 16,
        }  # fmt: skip
        assert (spec.name, spec.grid, spec.cls_dim, spec.patch_dim, spec.stride_px) == ("my-net", (4, 4), 32, 48, 16)
        assert str(tmp_path) not in str(spec.identity())
        assert spec.weights_sha256 == tensors_sha256(load_teacher(spec).encoder.backbone)

    def test_a_moved_file_is_the_same_teacher_and_a_changed_one_another(self, tmp_path: Path) -> None:
        here = identity(own_file(tmp_path))
        assert identity(own_file(tmp_path, name="renamed.py")) == here
        assert identity(own_file(tmp_path, ("# float", "# Float"))) != here
        assert identity(own_file(tmp_path, ("def build(", "def make("), name="m.py").replace(":build", ":make")) != here

    def test_weights_count_by_their_bytes_in_a_file_or_a_folder(self, tmp_path: Path) -> None:
        name = own_file(tmp_path, ("torch.load(weights,", "torch.load(weights / 'net.pt' if weights.is_dir() else weights,"))
        state = load_teacher(resolve_teacher(name)).encoder.backbone.state_dict()
        folder = tmp_path / "folder"
        folder.mkdir()
        torch.save(state, folder / "net.pt")
        torch.save({key: value + 1 for key, value in state.items()}, tmp_path / "other.pt")
        of_file, of_folder, of_other = (resolve_teacher(name, weights=path) for path in (folder / "net.pt", folder, tmp_path / "other.pt"))
        assert of_file.weights_sha256 == file_sha256(folder / "net.pt")
        assert len({digest(one.identity()) for one in (of_file, of_folder, of_other)}) == 3
        pixels = torch.from_numpy(canary_images(1, 64))
        assert torch.equal(load_teacher(of_file)(pixels).patch_BHWD, load_teacher(of_folder)(pixels).patch_BHWD)
        assert not torch.equal(load_teacher(of_file)(pixels).patch_BHWD, load_teacher(of_other)(pixels).patch_BHWD)
        (folder / "more.txt").write_text("x")
        with pytest.raises(BadInput, match="the weights of my-net changed since they were resolved"):
            load_teacher(of_folder)

    def test_a_file_that_the_function_reads_for_itself_counts_by_the_tensors_that_come_of_it(self, tmp_path: Path) -> None:
        torch.save(torch.zeros(32), tmp_path / "bias.pt")
        loads = f"    net = MyNet()\n    net.pool.bias.data = torch.load({str(tmp_path / 'bias.pt')!r}, weights_only=True)\n"
        name = own_file(tmp_path, ("    net = MyNet()\n", loads))
        before = identity(name)
        assert identity(name) == before
        torch.save(torch.ones(32), tmp_path / "bias.pt")
        assert identity(name) != before

    def test_size_constants_and_precision_are_options_as_of_any_teacher(self, tmp_path: Path) -> None:
        name = own_file(tmp_path, (DECLARES, DECLARES[:-1] + ", mean=(0, 0, 0), std=(1, 1, 1))"))
        spec = resolve_teacher(name, size_px=96, precision="bf16", constants="imagenet")
        assert (spec.grid, spec.precision, spec.preprocessing.mean[0]) == ((6, 6), "bf16", 0.485)
        assert identity(name) == identity(own_file(tmp_path, (DECLARES, DECLARES[:-1] + ", mean=(0, 0, 0), std=(1, 1, 1))")))
        with pytest.raises(BadInput, match="97 px is not a multiple of its stride of 16 px"):
            resolve_teacher(name, size_px=97)


class TestTravel:
    def test_a_worker_builds_it_from_the_bytes_without_the_file(self, tmp_path: Path) -> None:
        spec = resolve_teacher(own_file(tmp_path))
        pixels = torch.from_numpy(canary_images(2, 64))
        here = load_teacher(spec)(pixels)
        (tmp_path / "my_teacher.py").unlink()
        there = load_teacher(pickle.loads(pickle.dumps(spec)))(pixels)
        assert torch.equal(here.patch_BHWD, there.patch_BHWD)

    def test_other_bytes_than_the_identity_says_are_refused(self, tmp_path: Path) -> None:
        spec = resolve_teacher(own_file(tmp_path))
        assert spec.source is not None
        with pytest.raises(BadInput, match="source of teacher my-net is not the one that was resolved"):
            load_teacher(replace(spec, source=spec.source._replace(code=spec.source.code + b"\n")))

    def test_a_name_is_made_absolute_before_it_goes_anywhere(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        name = own_file(tmp_path)
        monkeypatch.chdir(tmp_path)
        assert absolute_name("my_teacher.py:build") == name
        assert identity("my_teacher.py:build") == identity(name)

    def test_a_function_whose_weights_are_others_each_time_is_refused(self, tmp_path: Path) -> None:
        name = own_file(
            tmp_path,
            (
                "    net = MyNet()\n",
                "    net = MyNet()\n    torch.nn.init.constant_(net.pool.bias, __import__('time').time_ns() % 2**20)\n",
            ),
        )
        spec = resolve_teacher(name)
        with pytest.raises(BadInput, match="makes a module with other weights each time"):
            load_teacher(spec)

    def test_a_module_without_parameters_is_a_teacher(self, tmp_path: Path) -> None:
        name = own_file(
            tmp_path,
            ("self.patches, self.pool = torch.nn.Conv2d(3, 48, kernel_size=16, stride=16), torch.nn.Linear(48, 32)", "pass"),
            ("self.patches(pixels)", "torch.nn.functional.avg_pool2d(pixels, 16)"), (RETURNS, "return None, patch"),
            ("attention pool", "none"),
        )  # fmt: skip
        cls_BD, patch_BHWD = load_teacher(resolve_teacher(name))(torch.from_numpy(canary_images(2, 64)))
        assert cls_BD is None
        assert patch_BHWD.shape == (2, 4, 4, 3)


class TestModulesBeside:
    """A module that lies in the file's folder is in no identity and on no other machine, importable here or not."""

    IMPORTS = ("import helping", "from helping import scale", "import helping.deep as h", "def later():\n    import helping")

    @pytest.mark.parametrize("importable", [True, False])
    @pytest.mark.parametrize("statement", IMPORTS)
    @pytest.mark.parametrize("kind", ["module", "package", "namespace"])
    def test_it_is_refused_before_anything_is_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str, importable: bool, kind: str
    ) -> None:
        ran = tmp_path / "ran"
        code = f"open({str(ran)!r}, 'w').close()\n"
        if kind == "module":
            (tmp_path / "helping.py").write_text(code)
        else:
            (tmp_path / "helping").mkdir()
            (tmp_path / "helping" / ("__init__.py" if kind == "package" else "deep.py")).write_text(code)
        if importable:
            monkeypatch.syspath_prepend(tmp_path)
        with pytest.raises(BadInput, match=r"imports helping, which lies beside it: the file travels alone.*install it as a package"):
            resolve_teacher(own_file(tmp_path, ("import torch\n", f"{statement}\nimport torch\n")))
        assert not ran.exists()

    def test_an_installed_package_may_have_a_namesake_beside_the_file(self, tmp_path: Path) -> None:
        (tmp_path / "torch").mkdir()  # a folder of checkpoints
        (tmp_path / "json.py").write_text("")
        assert resolve_teacher(own_file(tmp_path, ("import torch\n", "import json\nimport torch\n"))).name == "my-net"


class TestRefused:
    @pytest.mark.parametrize(("old", "new", "why"), [
        ("import torch\n", "import torch, nothing_of_that_name\n", r"cannot be imported: ModuleNotFoundError.*\(line 1\); the file"),
        ("def build", "def bild", r"has no function 'build'; it has MyNet, bild"),
        ("class MyNet", "class MyNet(", r"SyntaxError.*\(line 5\)"),
        ("    net = MyNet()", "    net = MyNet(1)", r"fails with weights=None: TypeError.*\(line 16\)"),
        ("    net = MyNet()", "    raise SystemExit('gone')", r"SystemExit: gone"),
        ("return OwnTeacher(net, ", "return dict(net=net, ", r"returns a dict, expected an OwnTeacher"),
        ("OwnTeacher(net,", "OwnTeacher(build,", r"module is a function, expected a torch.nn.Module"),
        ("size_px=64", "size_px=70", r"70 px is not a multiple of its stride of 16 px"),
        ("size_px=64", "size_px='64'", r"size_px is a count of pixels, got '64'"),
        ("stride_px=16", "stride_px=8", r"gives a tensor of shape 1×4×4×48 and torch.float32, expected patch tokens .* of shape 1×8×8×D"),
        ("attention pool", "pooled", r"cls is 'pooled'; kinds: class token"),
        ("attention pool", "none", r"says that there is no class token"),
        ('"my-net"', '"my/net"', r"the name of a teacher"),
        ('"my-net"', '"dinov3-h+"', r"calls itself 'dinov3-h\+', which is a known teacher's name"),
        (RETURNS, "return patch", r"gives a tensor of shape 1×4×4×48 and torch.float32, expected \(cls, patch\)"),
        (RETURNS, "return patch.mean(dim=(1, 2)), patch.flatten(1, 2)", r"shape 1×16×48 and torch.float32, expected patch tokens"),
        (RETURNS, "return patch.amax(dim=(1, 2)), patch.long()", r"torch.int64, expected patch tokens"),
        (RETURNS, "return None, patch", r"NoneType, expected a class token"),
        (RETURNS, "return patch.mean(dim=(1, 2)) / 0 * 0, patch", r"its class token of a picture of noise are not finite"),
        (RETURNS, "return patch.amax(dim=(1, 2)), patch.view(3, -1)", r"fails on pixels of 1×3×64×64: RuntimeError.*\(line 12\)"),
        (RETURNS, "return patch.amax(dim=(1, 2)), patch.squeeze()", r"gives a tensor of shape 4×4×48 and torch.float32, expected patch"),
        (DECLARES, DECLARES[:-1] + ", std=(0, 1, 1))", r"std must be positive"),
        (DECLARES, DECLARES[:-1] + ", mean=(0, 1))", r"mean is three numbers, got \(0, 1\)"),
    ])  # fmt: skip
    def test_each_mistake_is_said_with_what_was_expected(self, tmp_path: Path, old: str, new: str, why: str) -> None:
        with pytest.raises(BadInput, match=why) as caught:
            resolve_teacher(own_file(tmp_path, (old, new)))
        assert re.search(r"my_teacher\.py|teacher", str(caught.value))

    @pytest.mark.parametrize(("name", "why"), [
        ("nowhere.py:build", "cannot be read: No such file"), ("my_teacher.py", "names no function"),
        ("my_teacher.py:", "names no function"),
        ("my_teacher.py:1", "names no function"), ("my_teacher.py:build:more", "names no function"),
    ])  # fmt: skip
    def test_a_name_that_is_not_file_and_function_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, why: str
    ) -> None:
        own_file(tmp_path)
        monkeypatch.chdir(tmp_path)
        with pytest.raises(BadInput, match=why):
            resolve_teacher(name)

    def test_weights_that_are_not_there_are_refused_by_the_function_or_by_us(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="FileNotFoundError"):
            resolve_teacher(own_file(tmp_path), weights=tmp_path / "absent.pt")
        ignoring = own_file(tmp_path, ("if weights is not None", "if False"))
        with pytest.raises(BadInput, match=r"weights of teacher .* are missing: .*absent\.pt is no file"):
            resolve_teacher(ignoring, weights=tmp_path / "absent.pt")
