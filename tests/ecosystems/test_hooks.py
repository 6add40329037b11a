"""timm knows our students, transformers our experts, whichever comes first; importing us is no torch yet."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fresh_process
import pytest

MAKES = "model = timm.create_model('vim_tiny_patch16_224', depth=1)\nassert model.num_layers == 1\n"
# name -> a program that must end well
PROGRAMS = {
    "transmamba, then timm": "import transmamba, timm\n" + MAKES,
    "timm, then transmamba": "import timm, transmamba\n" + MAKES,
    "transmamba, then transformers' experts": (
        "import transmamba\nfrom transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS as known\n"
        "assert 'transmamba' in known\n"
    ),
    "transformers' experts, then transmamba": (
        "from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS as known\nimport transmamba\n"
        "assert 'transmamba' in known\n"
    ),
    "a mixer, then transmamba": (
        "from transformers.models.bamba import modeling_bamba as m\nimport transmamba\n"
        "from transmamba.ecosystems.gated_norms import mend\n"
        "assert not mend(m.BambaMixer, m.BambaRMSNormGated)\n"
    ),
    "a part of timm": (
        "import transmamba\nfrom timm.models import create_model\ncreate_model('vim_micro_patch2_8')\n"
    ),
    "nobody asks us": "import transmamba, timm\nassert timm.list_models('ssd_vit_*')\n",
    "somebody looks for timm first": (
        "import transmamba, importlib.util as u\nassert u.find_spec('timm').origin.endswith('__init__.py')\n"
        "import sys\nassert 'timm' not in sys.modules\nimport timm\n" + MAKES
    ),
    "reloaded": (
        "import importlib, sys, transmamba\nimportlib.reload(transmamba)\n"
        "importlib.reload(sys.modules['transmamba.ecosystems.hooks']).install()\n"
        "assert sum('hooks' in type(f).__module__ for f in sys.meta_path) == 1\n"
        "import timm\nimportlib.reload(timm)\n" + MAKES
    ),
    "threads": (
        "import threading, transmamba\nfailed = []\n"
        "def go():\n    try:\n        import timm\n        timm.create_model('vim_micro_patch2_8', depth=1)\n"
        "    except BaseException as error:\n        failed.append(error)\n"
        "threads = [threading.Thread(target=go) for _ in range(8)]\n"
        "[t.start() for t in threads]\n[t.join(60) for t in threads]\n"
        "assert not failed and not any(t.is_alive() for t in threads), failed\n"
    ),
    "another hook that asks all finders": (
        "import sys\nclass Other:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name != 'timm': return None\n"
        "        others = (f.find_spec(name, path, target) for f in sys.meta_path if f is not self)\n"
        "        return next((s for s in others if s is not None), None)\n"
        "import transmamba\nsys.meta_path.insert(0, Other())\nimport timm\n" + MAKES
    ),
    "a forked data worker": (
        "import transmamba, torch\nfrom torch.utils.data import DataLoader\n"
        "class Data(torch.utils.data.Dataset):\n    def __len__(self): return 2\n"
        "    def __getitem__(self, i):\n        import timm\n"
        "        return timm.create_model('vim_micro_patch2_8', depth=1).num_layers\n"
        "loader = DataLoader(Data(), num_workers=2, multiprocessing_context='fork')\n"
        "assert [b.item() for b in loader] == [1, 1]\n"
    ),
    "a saved student": (
        "import sys, transmamba, timm\nm = timm.create_model('vim_micro_patch2_8', depth=1)\n"
        "transmamba.save_student(m, sys.argv[1])\n"
        "assert timm.create_model('local-dir:' + sys.argv[1], pretrained=True).num_layers == 1\n"
    ),
    "students that fail leave timm alone": (
        "import sys, warnings\nsys.modules['transmamba.students'] = None\nimport transmamba\n"
        "with warnings.catch_warnings(record=True) as said:\n    warnings.simplefilter('always')\n"
        "    import timm\nassert timm.is_model('vit_tiny_patch16_224')\n"
        "assert any('could not register itself in timm' in str(w.message) for w in said)\n"
    ),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_timm_knows_our_students(case: str, tmp_path: Path) -> None:
    done = fresh_process.run(PROGRAMS[case], tmp_path / "student")
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("heavy", ["torch", "timm", "transformers", "numpy", "pydantic", "yaml"])
def test_importing_us_imports_nothing_heavy(heavy: str) -> None:
    program = f"import sys, transmamba\nsys.exit({heavy!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
