"""The README's and the reference's code runs as it is written, but for the model and the server."""

import re
import sys
from pathlib import Path

from agentcore import OptimizationPipeline, offline_lm
from tests.support import colours

ROOT = Path(__file__).parents[2]


def blocks(document):
    return re.findall(r"```python\n(.*?)```", (ROOT / document).read_text(), re.DOTALL)


async def test_the_readmes_program(tmp_path, monkeypatch, capsys):
    (code,) = blocks("README.md")
    code = code.replace('dspy.LM("openai/gpt-5-mini")', "offline_lm()").replace(
        '"http://localhost:5000"', repr(f"sqlite:///{tmp_path / 'mlflow.db'}")
    )
    (tmp_path / "readme_program.py").write_text("from agentcore import offline_lm\n" + code)
    monkeypatch.syspath_prepend(tmp_path)
    import readme_program

    rows = [{"question": f"what is {row['thing']}?", "answer": row["colour"]} for row in colours(60).rows()]
    await readme_program.main(rows)
    printed = capsys.readouterr()
    assert "better: the optimized program is better" in printed.out
    assert printed.out.splitlines()[-1] in ("green", "red", "yellow")
    sys.modules.pop("readme_program")


async def test_the_references_optimizer(tmp_path, monkeypatch):
    from agentcore.dspy_optimization.optimizers import _make

    (code,) = [block for block in blocks("docs/reference.md") if "class Politeness(" in block]
    (tmp_path / "politeness.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    import politeness

    monkeypatch.setattr(
        _make,
        "entry_points",
        lambda **_: [type("Entry", (), {"load": lambda self: politeness.Politeness})()],
    )
    pipeline = OptimizationPipeline("thing -> colour", lm=offline_lm(), enable_tracking=False)
    result = await pipeline.run_optimization(
        {"target": {"id": "x"}, "algorithms": ["politeness"]}, training_data=colours(30)
    )
    assert len(result.optimization_details["trials"]) == 3
    sys.modules.pop("politeness")
