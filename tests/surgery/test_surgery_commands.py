"""The surgery commands as a person meets them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import ConvNet, trained

from normwise.cli import app
from normwise.errors import NormwiseError
from normwise.surgery import checkpoint, convert

HERE = Path(__file__).parent

NETS = f"""
import sys; sys.path.insert(0, {str(HERE)!r})
import torch
from models import ConvNet

def net(): return ConvNet()
def batches():
    torch.manual_seed(0)
    return [(torch.randn(8, 3, 8, 8), torch.zeros(8)) for _ in range(2)]
def nothing(): return []
def broken(): raise KeyError("oh")
def leaves(): raise SystemExit(3)
def wrong(): return [torch.randn(8, 5, 8, 8)]
def ends():
    yield torch.randn(8, 3, 8, 8)
    raise OSError("the disk\\nis gone")
def once(): yield from (x for x, _ in batches())
number = 3
"""


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "mynets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = trained(ConvNet(), torch.randn(8, 3, 8, 8))
    checkpoint.save(tmp_path / "in.pt", checkpoint.Checkpoint(model.state_dict(), "state_dict", "module."))
    torch.save(model.fc, tmp_path / "whole.pt")
    for name in ("text.pt", "text.safetensors"):
        (tmp_path / name).write_text("no tensors")
    yield model
    for name in ("mynets", "two"):
        sys.modules.pop(name, None)


def run(*arguments):
    app(arguments, exit_on_error=False, print_error=False, result_action="return_value")


def test_convert_writes_what_python_loads(place, capsys):
    run("convert", "mynets.py:net", "in.pt", "--to", "group", "--out", "out.pt", "--input-shape", "2,3,8,8")
    text = capsys.readouterr().out
    assert "to group: 3 layers replaced" in text
    assert "output drift" in text
    written = torch.load("out.pt", weights_only=True)["state_dict"]
    assert all(key.startswith("module.") for key in written)
    model = convert(ConvNet(), "group").model
    checkpoint.load_into(model, checkpoint.load("out.pt"))
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(model.eval()(x), convert(place, "group").model(x))


def test_convert_with_data_and_json(place, capsys):
    options = ["--to", "layer", "--data", "mynets.py:batches", "--json"]
    run("convert", "mynets.py:net", "in.pt", *options, "--out", "out.safetensors")
    record = json.loads(capsys.readouterr().out)
    assert record["output_refitted"] is not None
    assert len(record["replaced"]) == 3
    assert "module.bn1.weight" in checkpoint.load("out.safetensors").state


def test_fold(place, capsys):
    run("fold", "mynets.py:net", "in.pt", "--out", "out.pt", "--input-shape", "2,3,8,8")
    assert "bn1 -> conv1" in capsys.readouterr().out
    assert "module.bn1.running_mean" not in checkpoint.load("out.pt").state


def test_calibrate(place, capsys):
    run("calibrate", "mynets.py:net", "in.pt", "--data", "mynets.py:batches", "--out", "out.pt")
    assert "bn1" in capsys.readouterr().out
    before, after = checkpoint.load("in.pt").state, checkpoint.load("out.pt").state
    assert set(before) == set(after)
    assert not torch.equal(before["module.bn1.running_var"], after["module.bn1.running_var"])


def test_data_that_can_be_read_once_is_made_anew(place, capsys):
    for data in ("batches", "once"):
        options = ["--layerwise", "--out", f"{data}.pt"]
        run("calibrate", "mynets.py:net", "in.pt", "--data", f"mynets.py:{data}", *options)
    again, kept = (checkpoint.load(f"{data}.pt").state for data in ("once", "batches"))
    assert all(torch.equal(again[key], value) for key, value in kept.items())


def test_modules_are_found_in_the_working_directory_and_methods_take_options(place, capsys):
    run("convert", "mynets:net", "in.pt", "--to", "group(num_groups=2)", "--where", "bn1", "--out", "out.pt")
    assert "1 layer replaced" in capsys.readouterr().out


def test_two_inputs_are_fed_as_loaders_give_them(place, capsys):
    Path("two.py").write_text(
        "import torch\n"
        "class Two(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__(); self.norm = torch.nn.BatchNorm2d(3)\n"
        "    def forward(self, x, y): return self.norm(x) + y\n"
        "def batches(): return [(torch.randn(4, 3, 5, 5), torch.ones(1), torch.zeros(4))]\n"
    )
    run("convert", "two.py:Two", "--to", "layer", "--data", "two.py:batches")
    run("fold", "two.py:Two", "--data", "two.py:batches", "--where", "none")
    assert "after the re-fit" in capsys.readouterr().out


def test_inspect_a_model_and_a_checkpoint(place, capsys):
    run("inspect", "mynets.py:net", "in.pt", "--fail-on", "info")
    assert "no findings" in capsys.readouterr().out
    run("inspect", "in.pt", "--json")
    assert len(json.loads(capsys.readouterr().out)["layers"]) == 3


def test_models_of_tokens_are_run_on_token_ids(place, capsys):
    Path("two.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class GPT(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.embed, self.norm, self.qkv = nn.Embedding(20, 8), nn.LayerNorm(8), nn.Linear(8, 24)\n"
        "        self.last, self.head = nn.LayerNorm(8), nn.Linear(8, 20)\n"
        "    def forward(self, ids):\n"
        "        x = self.embed(ids)\n"
        "        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)\n"
        "        y = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)\n"
        "        return self.head(self.last(x + y @ torch.eye(8)))\n"
        "def windows(): return torch.arange(3000) % 20\n"
    )
    run("inspect", "two.py:GPT", "--input-shape", "2,12")
    run("inspect", "two.py:GPT", "--data", "two.py:windows")
    assert capsys.readouterr().out.count("placement of the blocks: pre") == 2
    run("layer-to-rms", "two.py:GPT", "--input-shape", "2,12", "--where", "norm", "--out", "rms.pt")
    run("qk-norm", "two.py:GPT", "--data", "two.py:windows", "--out", "qk.pt")
    text = capsys.readouterr().out
    assert "1 layer made RMS norm" in text
    assert "norms of queries and keys behind 1 layer: qkv" in text
    assert "norm.bias" not in torch.load("rms.pt", weights_only=True)
    assert torch.load("qk.pt", weights_only=True)["qkv.head_norm.query"].shape == (4,)
    for verb in ("layer-to-rms", "qk-norm"):
        with pytest.raises(NormwiseError, match="give --input-shape 2,64 or --data"):
            run(verb, "two.py:GPT")
    with pytest.raises(NormwiseError, match="no attention of ConvNet"):
        run("qk-norm", "mynets.py:net", "--input-shape", "2,3,8,8")


@pytest.mark.parametrize(("severity", "code"), [("error", None), ("warning", 1), ("info", 1)])
def test_fail_on(place, severity, code, capsys):
    if code is None:
        run("inspect", "mynets.py:net", "--fail-on", severity)
    else:
        with pytest.raises(SystemExit) as stopped:
            run("inspect", "mynets.py:net", "--fail-on", severity)
        assert stopped.value.code == code
    assert "never saw data" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "nowhere.py:net"], "cannot find nowhere.py: no such file"),
        (["inspect", "nowhere:net"], "No module named 'nowhere'"),
        (["inspect", "mynets.py:other"], "has no attribute 'other'"),
        (["inspect", "mynets.py:number"], "is a int, expected something to call"),
        (["inspect", "mynets.py:broken"], "failed: KeyError"),
        (["inspect", "mynets.py:batches"], "gave list, expected a torch.nn.Module"),
        (["inspect", "mynets"], "expected module:callable or path.py:callable"),
        (["inspect", "other.pt"], "no such file"),
        (["inspect", "in.pt", "in.pt"], "is a checkpoint, not a model"),
        (["inspect", "mynets.py:net", "--fail-on", "fatal"], "unknown severity"),
        (["convert", "mynets.py:net", "--to", "grup"], "unknown method"),
        (["convert", "mynets.py:net", "other.pt", "--to", "group"], "no such file"),
        (["convert", "mynets.py:net", "in.pt", "--to", "group", "--out", "in.pt"], "is the source"),
        (["convert", "mynets.py:net", "--to", "group", "--input-shape", "a,b"], "expected sizes separated by commas"),
        (["convert", "mynets.py:net", "--to", "group", "--data", "mynets.py:nothing"], "gave no batches"),
        (["convert", "mynets.py:net", "--to", "group", "--where", "x*"], "matches none"),
        (["inspect", "mynets.py:leaves"], "failed: SystemExit: 3"),
        (["convert", "mynets.py:net", "--to", "group", "--input-shape", "1,5,8,8"], "failed on --input-shape 1,5,8,8"),
        (["convert", "mynets.py:net", "--to", "group", "--data", "mynets.py:wrong"], "failed on the first batch"),
        (["convert", "mynets.py:net", "--to", "group", "--data", "mynets.py:number"], "is a int"),
        (["convert", "mynets.py:net", "--to", "group", "--data", "mynets.py:net"], "cannot use a ConvNet as data"),
        (["convert", "mynets.py:net", "--to", "layer", "--data", "mynets.py:ends"], "failed after 1 batches: OSError"),
        (["convert", "mynets.py:net", "--to", "group", "--out", "no/a.pt"], "there is no folder no"),
        (["convert", "mynets.py:net", "--to", "group", "--out", "a.txt"], "expected a name ending in"),
        (["convert", "mynets.py:net", "--to", "group(groups=2)"], "does not take these options"),
        (["fold", "mynets.py:net", "--input-shape", "1,5,8,8"], "failed on --input-shape"),
        (["fold", "mynets.py:net", "in.pt", "--out", "in.pt"], "is the source"),
        (["calibrate", "mynets.py:net", "--data", "mynets.py:wrong"], "failed on a batch of mynets.py:wrong"),
        (["calibrate", "mynets.py:net", "--data", "mynets.py:ends"], "the disk is gone"),
        (["calibrate", "mynets.py:net", "--data", "mynets.py:batches", "--batches", "0"], "at least 1"),
        (["calibrate", "mynets.py:net", "--data", "mynets.py:batches", "--where", "x*"], "where='x*' matches"),
        (["inspect", "whole.pt"], "holds more than tensors"),
        (["inspect", "text.pt"], "damaged, or not of the kind"),
        (["inspect", "text.safetensors"], "damaged, or not of the kind"),
    ],
)
def test_mistakes_are_one_clear_error(place, arguments, message):
    with pytest.raises(NormwiseError) as error:
        run(*arguments)
    assert message in " ".join(str(error.value).split())


def test_a_mistake_ends_in_one_line_and_exit_code_2(place):
    arguments = ["convert", "mynets.py:net", "--to", "group", "--input-shape", "1,5,8,8"]
    program = f"from normwise.cli import main; main({arguments!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("normwise: error: ConvNet failed on --input-shape")


def test_help_needs_no_torch():
    program = (
        "import sys\n"
        "from normwise.cli import app\n"
        "try: app(['convert', '--help'])\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--to" in done.stdout


def test_the_way_back_on_the_command_line(place, capsys):
    (Path("mynets.py")).write_text(
        NETS
        + "\nfrom normwise import convert"
        + "\ndef ours(): return convert(ConvNet(), 'batch').model"
        + "\ndef mixed(): return convert(ConvNet(), 'switchable(over=layer+batch)').model\n"
    )
    run("convert", "mynets.py:ours", "in.pt", "--to", "torch", "--out", "back.pt", "--input-shape", "2,3,8,8")
    assert "modules became torch's own" in capsys.readouterr().out
    before, after = checkpoint.load(Path("in.pt")).state, checkpoint.load(Path("back.pt")).state
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    run("convert", "mynets.py:ours", "--to", "torch", "--input-shape", "2,3,8,8", "--json")
    assert json.loads(capsys.readouterr().out)["layers"][0]["now"].startswith("torch.nn.BatchNorm")
    with pytest.raises(NormwiseError, match="harden=True"):
        run("convert", "mynets.py:mixed", "--to", "torch")
    with pytest.warns(UserWarning, match="had a share of"):
        run("convert", "mynets.py:mixed", "--to", "torch", "--harden", "--input-shape", "2,3,8,8")
    for wrong in (["group", "--harden"], ["torch", "--keep-going"]):
        with pytest.raises(NormwiseError, match="--to"):
            run("convert", "mynets.py:ours", "--to", *wrong)


@pytest.mark.parametrize("name", ["x.pth.tar", "weights", "x.pt.1", "a.b.model"])
def test_inspect_goes_by_the_file_and_not_by_its_name(place, capsys, name):
    torch.save({"state": {"model": place.state_dict()}}, name)
    run("inspect", name)
    said = capsys.readouterr()
    assert "bn1" in said.out or "norm" in said.out
    assert said.err == f"{name}: the weights under 'state.model'\n"


def test_a_checkpoint_that_is_missing_or_stands_in_the_models_place_is_named(place):
    with pytest.raises(NormwiseError, match=r"cannot read the checkpoint no\.pth\.tar: no such file"):
        run("inspect", "no.pth.tar")
    with pytest.raises(NormwiseError, match="is a file of weights: expected what builds the model"):
        run("fold", "in.pt")


def test_the_line_that_failed_is_named(place):
    Path("two.py").write_text("import torch\ndef net():\n    return torch.nn.Linear('a', 2)\n")
    with pytest.raises(NormwiseError, match=r"two.py:net failed: TypeError: .* \(at two.py:3\)"):
        run("fold", "two.py:net")
    Path("two.py").write_text("import torch\ndef net(:\n")
    with pytest.raises(NormwiseError, match=r"SyntaxError: .* \(at two.py:2\)"):
        run("fold", "two.py:net")
