"""MLflow's models-from-code entry: the optimized program as a pyfunc, loaded without pickle.

MLflow runs this file when it loads the model. The LM is taken from `AGENTCORE_LM`, or
else from the model's configuration; its key comes from the environment.
"""

from pathlib import Path
from typing import Any

import dspy
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

from agentcore._json import jsonable
from agentcore._threads import run_to_its_end
from agentcore.evaluation import check_reserved, interface_of
from agentcore.lm import check_stored_name, resolve_lm
from agentcore.settings import Settings
from agentcore.tracking import load_program


class ProgramModel(PythonModel):  # type: ignore[misc,unused-ignore]
    def load_context(self, context: Any) -> None:
        self.program = load_program(Path(context.artifacts["program"]), context.model_config["name"])
        self.default_lm = context.model_config.get("lm")
        if Settings().lm is None:
            check_stored_name(self.default_lm)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """A row of output fields, as JSON has them, for each row of input fields."""
        check_reserved(self.program, model_input.columns, "model_input")
        lm = resolve_lm(Settings().lm or self.default_lm)
        interface = interface_of(self.program)
        with dspy.context(lm=lm):
            rows: list[dict[str, Any]] = model_input.to_dict("records")
            answers = [self._answer({key: interface.typed(key, row[key]) for key in row}) for row in rows]
        return pd.DataFrame([jsonable(dict(answer.items())) for answer in answers])

    def _answer(self, inputs: dict[str, Any]) -> Any:
        if hasattr(type(self.program), "forward"):
            return self.program(**inputs)
        return run_to_its_end(lambda: self.program.acall(**inputs))


set_model(ProgramModel())
