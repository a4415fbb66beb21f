import subprocess
import sys


def run(script: str) -> str:
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_timm_and_an_extraction_come_without_the_compiler() -> None:
    script = (
        "import sys, gc\n"
        "import eupe_pipeline.jobs.extraction.extract\n"
        "print('timm' in sys.modules, 'torchvision' in sys.modules, 'torch._dynamo' in sys.modules, 'sympy' in sys.modules, gc.isenabled())"
    )
    assert run(script).split() == ["True", "True", "False", "False", "True"]


def test_what_was_put_off_works_when_it_is_called() -> None:
    script = (
        "from eupe_pipeline.teachers.runtime.timm_import import import_timm; import_timm(); import_timm()\n"
        "import sys, timm, torch\n"
        "model = timm.create_model('naflexvit_base_patch16_gap', embed_dim=32, depth=1, num_heads=2).eval()\n"
        "print(tuple(model(torch.zeros(1, 3, 64, 64)).shape))\n"
        "from torchvision.ops.roi_align import _roi_align\n"
        "late = sys.modules['torchvision.ops.roi_align'].is_compile_supported\n"
        "answer = late('cpu')\n"
        "import torch._dynamo.utils as real\n"
        "print(answer == real.is_compile_supported('cpu'), late is not real.is_compile_supported, real.__file__ is not None)\n"
        "print(torch.compiler.disable.__module__, torch.compile(lambda x: x + 1, backend='eager')(torch.ones(1)).item())"
    )
    assert run(script).splitlines() == ["(1, 1000)", "True True True", "torch.compiler 2.0"]


def test_whoever_asks_the_stand_in_for_more_gets_the_real_module() -> None:
    script = (
        "import torch, sys\n"
        "from eupe_pipeline.teachers.runtime import timm_import as light_timm\n"
        "with light_timm._lazy_dynamo_utils():\n"
        "    from torch._dynamo.utils import counters\n"
        "    assert counters is not None\n"
        "print(sys.modules['torch._dynamo.utils'].counters is counters)"
    )
    assert run(script).strip() == "True"
