"""Two hundred malformed inputs, and what hypothesis makes of the right ones: every file and flag that a user writes.

Each through the command line: one line on standard error, status 2, nothing on standard output, nothing written.
"""

import copy
import json
import shutil

import pytest
from here import Here
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from tiny_space import tiny_space

from moe_optuna import InputError, MoEArchitecture
from moe_optuna.cli import main
from moe_optuna.laws import read_runs
from moe_optuna.search import ladder, search
from moe_optuna.search._storage import open_storage

SPACE = tiny_space().to_toml()
ARCHITECTURE = MoEArchitecture(
    d_model=64, n_dense_layers=1, n_moe_layers=2, n_heads=4, n_kv_heads=2, d_head=16, d_dense=192, d_expert=32,
    n_experts=8, top_k=2, n_shared_experts=1, context_length=256, vocab_size=256,
)  # fmt: skip
LATTICE = ("lattice", "FILE", "--compute", "1e9", "--compute-density", "8", "--expansion-ratio", "2")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished search."""
    folder = tmp_path_factory.mktemp("malformed") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ladder, "LocalExecutor", Here)
        search(tiny_space(), out=folder, workers=1, trial="instant_trials")
    ARCHITECTURE.save(folder / "architecture.json")
    return folder


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Run the command in an empty folder; its status, and the line that it printed."""

    def written():  # the lock of a search that could not begin stays behind, empty of meaning
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file() and path.name != "lock"}

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        before = written()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        status = stop.value.code or 0
        assert status in (0, 2)
        if status == 2:
            assert out == ""
            assert len(err.splitlines()) == 1, err
            assert err.startswith("moe-optuna: ")
            assert len(err) < 2000
            assert written() == before, "something was written"
        return status, err

    return run


def refused(call, *arguments, says=""):
    status, line = call(*arguments)
    assert status == 2, arguments
    assert says.lower() in line.lower(), line


EDITS = [
    ('name = "tiny"', 'nmae = "tiny"', "did you mean 'name'"),
    ("format = 1", "format = 2", "format"),
    ("format = 1", 'format = "1"', "format"),
    ("format = 1", "", "format"),
    ('name = "tiny"', "name = 7", "name"),
    ('name = "tiny"', 'name = "../tiny"', "name"),
    ('name = "tiny"', 'name = ""', "name"),
    ("budgets = [1000000000.0, 3000000000.0]", "budgets = []", "budgets"),
    ("budgets = [1000000000.0, 3000000000.0]", "budgets = [3e9, 1e9]", "budgets"),
    ("budgets = [1000000000.0, 3000000000.0]", "budgets = [1e9, 1e9]", "budgets"),
    ("budgets = [1000000000.0, 3000000000.0]", "budgets = [-1e9, 3e9]", "budgets"),
    ("budgets = [1000000000.0, 3000000000.0]", "budgets = [nan]", "budgets"),
    ("budgets = [1000000000.0, 3000000000.0]", "budgets = [1e400]", "budgets"),
    ("budgets = [1000000000.0, 3000000000.0]", 'budgets = ["many"]', "budgets"),
    ("budgets = [1000000000.0, 3000000000.0]", "budgets = 1e9", "budgets"),
    ("budgets =", "budgtes =", "did you mean 'budgets'"),
    ("target = 30000000000.0", "target = -1", "target"),
    ("target = 30000000000.0", "target = inf", "target"),
    ("target = 30000000000.0", "target = 1e9", "target"),
    ("coefficient = 4.0", "coefficient = 0", "coefficient"),
    ("exponent = 0.5", 'exponent = "half"', "exponent"),
    ("compute_density = [6.4, 24.0]", "compute_density = [24.0, 6.4]", "compute_density"),
    ("compute_density = [6.4, 24.0]", "compute_density = [5.0, 24.0]", "compute_density"),
    ("compute_density = [6.4, 24.0]", "compute_density = [6.4]", "compute_density"),
    ("expansion_ratio = [1.2, 2.8]", "expansion_ratio = [0.5, 2.8]", "expansion_ratio"),
    ("expansion_ratio = [1.2, 2.8]", "expansion_ratio = [1.2, nan]", "expansion_ratio"),
    ("resolution = 0.05", "resolution = 0", "resolution"),
    ("resolution = 0.05", "resolution = -0.05", "resolution"),
    ("active_params = 0.1", "active_params = -0.1", "active_params"),
    ("active_params = 0.1", "active_params = 2.0", "active_params"),
    ("active_params = 0.1", "active_param = 0.1", "did you mean 'active_params'"),
    ("d_model = { low = 16, high = 512, multiple = 4 }", "d_model = { low = 512, high = 16, multiple = 4 }", "d_model"),
    ("d_model = { low = 16, high = 512, multiple = 4 }", "d_model = { low = 0, high = 512, multiple = 0 }", "d_model"),
    ("d_model = { low = 16, high = 512, multiple = 4 }", "d_model = { low = -16, high = 512 }", "d_model"),
    ("d_model = { low = 16, high = 512, multiple = 4 }", "d_model = { low = 16.5, high = 512 }", "d_model"),
    (
        "d_model = { low = 16, high = 512, multiple = 4 }",
        "d_modle = { low = 16, high = 512 }",
        "did you mean 'd_model'",
    ),
    ("n_heads = [2]", "n_heads = []", "n_heads"),
    ("n_heads = [2]", "n_heads = [0]", "n_heads"),
    ("n_heads = [2]", 'n_heads = "2"', "n_heads"),
    ("n_experts = [8, 16]", "n_experts = [8, 8.5]", "n_experts"),
    ("n_experts = [8, 16]", "n_experts = [1]", "top_k"),
    ("top_k = [2, 1]", "top_k = [0]", "top_k"),
    ("n_shared_experts = [1]", "n_shared_experts = [-1]", "n_shared_experts"),
    ("context_length = 64", "context_length = 0", "context_length"),
    ("vocab_size = 256", "vocab_size = -256", "vocab_size"),
    ("tied_embeddings = false", 'tied_embeddings = "no"', "tied_embeddings"),
    ("expert_parallel = 1", "expert_parallel = 0", "expert_parallel"),
    ("zero = 1", "zero = 7", "zero"),
    ("one = [4]", "one = [-4]", "one"),
    ("one = [4]", "one = [4, 4, 4]", "one"),
    ("one = [4]", "noe = [4]", "did you mean 'one'"),
]


@pytest.mark.parametrize(("old", "new", "says"), EDITS, ids=[f"{new or 'no ' + old}" for old, new, _ in EDITS])
def test_search_spaces(call, tmp_path, old, new, says):
    assert old in SPACE
    path = tmp_path / "mine.toml"
    path.write_text(SPACE.replace(old, new, 1))
    arguments = [path if word == "FILE" else word for word in LATTICE]
    refused(call, *arguments, says=says)
    refused(call, "search", path, says=says)


TABLES = [
    ("reports = 4", "reports = 0", "reports"),
    ("reports = 4", "reports = 4.5", "reports"),
    ("reports = 4", "reprots = 4", "did you mean 'reports'"),
    ("reports = 4", 'strategy = "dpp"', "did you mean 'ddp'"),
    ("reports = 4", 'schedule = "wsx"', "did you mean 'wsd'"),
    ("reports = 4", "learning_rate = -1.0", "learning_rate"),
    ("reports = 4", "learning_rate = nan", "learning_rate"),
    ("reports = 4", "held_out = 1.5", "held_out"),
    ("reports = 4", "warmup = 0.7\ndecay = 0.7", "warmup"),
    ("reports = 4", "data = 7", "data"),
    ("final_windows = 16", "final_windows = 2", "report_windows"),
]


@pytest.mark.parametrize(("old", "new", "says"), TABLES, ids=[new for _, new, _ in TABLES])
def test_training_tables(call, tmp_path, old, new, says):
    path = tmp_path / "mine.toml"
    path.write_text(SPACE.replace(old, new, 1))
    refused(call, "search", path, says=says)


BYTES = {
    "empty": b"",
    "a line without a value": b"name =\n",
    "latin-1": 'name = "é"\n'.encode("latin-1"),
    "utf-16": SPACE.encode("utf-16"),
    "noughts": bytes(64),
    "a picture": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
    "deep": b"[" * 100_000,
    "an array": b"[1, 2, 3]",
    "a number": b"7",
}


@pytest.mark.parametrize("content", BYTES.values(), ids=BYTES)
@pytest.mark.parametrize(
    "command",
    [
        LATTICE,
        ("count", "FILE"),
        ("export", "FILE", "--to", "hf"),
        ("fit", "FILE", "--law", "chinchilla"),
        ("plan", "--compute", "1e20", "--laws", "FILE"),
        ("leverage", "--activation-ratio", "0.1", "--granularity", "4", "--compute", "1e20", "--law", "FILE"),
    ],
    ids=lambda command: command[0],
)
def test_files_that_are_something_else(call, tmp_path, command, content):
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    refused(call, *(path if word == "FILE" else word for word in command), says="mine.toml")


@pytest.mark.parametrize("content", [*BYTES.values(), b'{"op_code": 99, "worker_id": "x"}\n', b'{"op_code": 4}\n'])
def test_journals_that_are_something_else(call, tmp_path, content):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "journal.log").write_bytes(content)
    (folder / "runs.csv").write_text("study\n")
    refused(call, "dashboard", folder)
    if content:  # an empty journal is one that has just begun
        refused(call, "search", "cpu", "--out", folder, "--workers", "1", says="journal")
        assert (folder / "journal.log").read_bytes() == content


COUNTS = [
    ({"d_model": -64}, "d_model"),
    ({"d_model": 64.5}, "d_model"),
    ({"d_model": "64"}, "d_model"),
    ({"d_model": True}, "d_model"),
    ({"d_model": None}, "d_model"),
    ({"d_model": 10**400}, "d_model"),
    ({"top_k": 9}, "top_k"),
    ({"n_kv_heads": 3}, "n_kv_heads"),
    ({"d_modle": 64}, "did you mean 'd_model'"),
    ({"n_dense_layers": 0, "n_moe_layers": 0}, "layers"),
]


@pytest.mark.parametrize(("change", "says"), COUNTS, ids=[str(change)[:30] for change, _ in COUNTS])
def test_architectures(call, tmp_path, finished, change, says):
    data = json.loads((finished / "architecture.json").read_text())
    data["architecture"] |= change
    path = tmp_path / "mine.json"
    path.write_text(json.dumps(data))
    refused(call, "count", path, says=says)
    refused(call, "export", path, "--to", "megatron", says=says)


RUNS = {
    "no columns": ("", "missing column"),
    "another name": ("params,toknes,loss\n1e9,1e9,2\n", "did you mean"),
    "a header only": ("total_params,tokens,loss\n", "row"),
    "one run": ("total_params,tokens,loss\n1e9,1e9,2\n", "1 runs"),
    "a word": ("total_params,tokens,loss\n1e9,1e9,two\n", "two"),
    "nan": ("total_params,tokens,loss\n1e9,1e9,nan\n", "nan"),
    "infinite": ("total_params,tokens,loss\n1e9,inf,2\n", "inf"),
    "negative": ("total_params,tokens,loss\n-1e9,1e9,2\n", "-1e9"),
    "a short row": ("total_params,tokens,loss\n1e9,1e9\n", "row 1"),
    "a long row": ("total_params,tokens,loss\n1e9,1e9,2,7\n", "row 1"),
    "noughts inside": ("total_params,tokens,loss\n1e9,\0,2\n", "row 1"),
}


@pytest.mark.parametrize(("text", "says"), RUNS.values(), ids=RUNS)
def test_tables_of_runs(call, tmp_path, text, says):
    path = tmp_path / "runs.csv"
    path.write_text(text)
    refused(call, "fit", path, "--law", "chinchilla", says=says)


FLAGS = [
    ("plan", "--compute", "1e400"),
    ("plan", "--compute", "-3"),
    ("plan", "--compute", "0"),
    ("plan", "--compute", "3e20", "--space", "nowhere"),
    ("plan", "--compute", "3e20", "--sapce", "cpu"),
    ("plan",),
    ("lattice", "cpu", "--compute", "-1"),
    ("lattice", "cpu", "--compute", "nan"),
    ("lattice", "cpu", "--compute", "1e12", "--expansion-ratio", "nan", "--compute-density", "9"),
    ("lattice", "cpu", "--compute", "1e12", "--flops-per-token", "1e6"),
    ("lattice", "cpu", "--flops-per-token", "-1", "--active-params", "1", "--total-params", "1"),
    ("lattice", "cpu", "--flops-per-token", "1e6"),
    ("leverage", "--activation-ratio", "0", "--granularity", "4", "--compute", "1e20"),
    ("leverage", "--activation-ratio", "0.1", "--granularity", "-4", "--compute", "1e20"),
    ("leverage", "--activation-ratio", "0.1", "--granularity", "4", "--compute", "inf"),
    ("search",),
    ("search", "cpu", "--workers", "-1"),
    ("search", "cpu", "--workers", "two"),
    ("search", "cpu", "--devices-per-trial", "0"),
    ("search", "cpu", "--devices-per-trial", "1000"),
    ("search", "cpu", "--executor", "Local"),
    ("search", "cpu", "--executor", ""),
    ("search", "cpu", "--ray-address", "127.0.0.1:6379"),
    ("search", "cpu", "--executor", "ray", "--ray-address", "127.0.0.1:99999"),
    ("search", "cpu", "--executor", "ray", "--ray-address", "127.0.0.1:1"),
    ("search", "cpu", "--seed", "pi"),
    ("search", "cpu", "--seed", "-1"),
    ("search", "cpu", "--seed", str(2**70)),
    ("search", "cpu", "--out", "/dev/null/run"),
    ("search", "cpu", "--storage", ""),
    ("search", "cpu", "--storage", "journal.log"),
    ("search", "cpu", "--storage", "redis://eve:s3cret@127.0.0.1:1/0", "--workers", "1"),
    ("search", "cpu", "--storage", "sqlite:////nowhere/at/all.db", "--workers", "1"),
    ("search", "cpu", "--storage", "postgresql+psycopg://eve:s3cret@127.0.0.1:1/x", "--workers", "1"),
    ("search", "cpu", "--storage", "postgresql+psycopg://eve:s3cret@127.0.0.1:many/x", "--workers", "1"),
    ("search", "cpu", "--storage", "postgresql+psycopg://eve:s3cret@[::1/x", "--workers", "1"),
    ("search", "cpu", "--storage", "postgres://eve:s3cret@127.0.0.1:1/x", "--workers", "1"),
    ("count", "."),
    ("export", ".", "--to", "hf"),
    ("report", "."),
    ("dashboard", "."),
    ("fit", ".", "--law", "chinchilla"),
    ("fit", "runs.csv", "--law", "chinchila"),
    ("serach", "cpu"),
    ("--verison",),
]


@pytest.mark.parametrize("arguments", FLAGS, ids=" ".join)
def test_flags(call, arguments):
    status, line = call(*arguments)
    assert status == 2
    assert "s3cret" not in line


BOOTSTRAPS = [["--bootstraps", "-1"], ["--bootstraps", "1.5"], ["--seed", "-1"], ["--law", "chinchila"], ["--law", ""]]


@pytest.mark.parametrize("arguments", BOOTSTRAPS, ids=" ".join)
def test_flags_of_a_fit(call, tmp_path, arguments):
    rows = [f"{n:g},{d:g},{1.7 + 400 / n**0.34 + 400 / d**0.28}" for n in (1e7, 1e8, 1e9) for d in (1e9, 1e10, 1e11)]
    (tmp_path / "runs.csv").write_text("\n".join(["total_params,tokens,loss", *rows]))
    refused(call, "fit", "runs.csv", "--law", "chinchilla", *arguments)


@pytest.mark.parametrize("port", ["-1", "99999", "http"])
def test_ports(call, finished, port):
    refused(call, "dashboard", finished, "--port", port, says="port")


# What hypothesis makes of files that are right ------------------------------------------------------------------------

SETTINGS = settings(
    max_examples=40,
    phases=[Phase.generate],
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
ODD = st.sampled_from(
    [
        None,
        "x",
        "",
        -1,
        0,
        0.5,
        1e308,
        10**40,
        float("nan"),
        float("inf"),
        [],
        {},
        [1],
        [[]],
        True,
        -1e300,
        "\0",
        "é" * 9,
    ]
)
TOKENS = st.sampled_from(
    [
        r"-1",
        r"0",
        r"nan",
        r"inf",
        r"-inf",
        r"1e400",
        r"1e-300",
        r'"x"',
        r'""',
        r"true",
        r"[]",
        r"{}",
        r"[[]]",
        r"[1,2]",
        r"0.5",
        r"99999999999999999999",
        r"1979-05-27",
        r'"\u0000"',
        r"{low=1}",
        r'{low="a",high=2}',
    ]
)


def places(data, path=()):
    """Every place in nested plain data."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from places(value, (*path, key))
        yield (*path, key)


def damaged(data, content):
    """A copy with one to three places changed, removed or renamed."""
    content = copy.deepcopy(content)
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from(list(places(content)) or [("x",)]))
        inner = content
        for key in path:
            inner = inner[key]
        action = data.draw(st.sampled_from(["change", "change", "remove", "rename"]))
        if action == "change" or not isinstance(inner, dict):
            inner[last] = copy.deepcopy(data.draw(ODD))
        else:
            value = inner.pop(last, None)
            if action == "rename":
                inner[f"{last}x"] = value
    return content


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("architecture.json", ("count", "FILE")),
        ("architecture.json", ("export", "FILE", "--to", "torchtitan")),
        ("config.json", ("count", "FILE")),
        ("gpt_oss.json", ("count", "FILE")),
        ("laws.json", ("plan", "--compute", "3e10", "--laws", "FILE", "--space", "SPACE")),
        ("blueprint.json", ("export", "FILE", "--to", "hf")),
    ],
)
@SETTINGS
@given(data=st.data())
def test_damaged_json(call, tmp_path, finished, name, command, data):
    if name == "config.json":
        content = {"model_type": "mixtral", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
        content |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 8}
        content |= {"num_experts_per_tok": 2, "vocab_size": 256, "max_position_embeddings": 128}
    elif name == "gpt_oss.json":  # with a word a layer
        content = {"model_type": "gpt_oss", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
        content |= {"num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 8, "head_dim": 16}
        content |= {"num_experts_per_tok": 2, "vocab_size": 256, "max_position_embeddings": 128, "sliding_window": 32}
        content |= {"layer_types": ["full_attention", "sliding_attention"]}
    else:
        content = json.loads((finished / name).read_text())
    (tmp_path / name).write_text(json.dumps(damaged(data, content)))
    (tmp_path / "space.toml").write_text(SPACE)
    files = {"FILE": tmp_path / name, "SPACE": tmp_path / "space.toml"}
    call(*(files.get(word, word) for word in command), "--json")


@SETTINGS
@given(data=st.data())
def test_damaged_spaces(call, tmp_path, data):
    lines = SPACE.splitlines()
    for _ in range(data.draw(st.integers(1, 2))):
        number = data.draw(st.sampled_from([n for n, line in enumerate(lines) if "=" in line]))
        lines[number] = lines[number].split("=")[0] + "= " + data.draw(TOKENS)
    (tmp_path / "mine.toml").write_text("\n".join(lines))
    call(*("mine.toml" if word == "FILE" else word for word in LATTICE), "--json")


@SETTINGS
@given(data=st.data())
def test_damaged_tables(tmp_path, finished, data):
    rows = [line.split(",") for line in (finished / "runs.csv").read_text().splitlines()]
    for _ in range(data.draw(st.integers(1, 3))):
        row = rows[data.draw(st.integers(0, len(rows) - 1))]
        row[data.draw(st.integers(0, len(row) - 1))] = data.draw(
            st.sampled_from(["", "x", "nan", "-1", "1e999", '"', "\0"])
        )
    (tmp_path / "runs.csv").write_text("\n".join(map(",".join, rows)))
    try:
        read_runs(tmp_path / "runs.csv", "holistic")
    except InputError as error:
        message = str(error)
    else:
        return
    assert "runs.csv" in message
    assert "\n" not in message


@SETTINGS
@given(data=st.data())
def test_damaged_journals(tmp_path, finished, data):
    """Damage anywhere: the search says so, or goes on from what is whole; what it cannot read it leaves as it is."""
    folder = tmp_path / "run"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    lines = (finished / "journal.log").read_bytes().splitlines(keepends=True)
    number = data.draw(st.integers(0, len(lines) - 1))
    record = json.loads(lines[number])
    lines[number] = (json.dumps(damaged(data, record)) + "\n").encode()
    (folder / "journal.log").write_bytes(b"".join(lines))
    try:
        open_storage(None, folder, workers=1)
    except InputError as error:
        message = str(error)
    else:
        return
    assert "journal" in message
    assert "\n" not in message
    assert (folder / "journal.log").read_bytes() == b"".join(lines)
