"""One exception root, few leaves. Every message says what was wrong, where, and what to do."""


class AgentCoreError(Exception):
    """The root of every error that AgentCore raises on purpose.

    `exit_code` is the command line's exit code: 2 for wrong usage, 3 when something outside failed.
    """

    exit_code = 3


class ConfigurationError(AgentCoreError):
    """Wrong arguments, settings, program path, optimizer or LM name."""

    exit_code = 2


class RunFinishedError(ConfigurationError):
    """The run to resume has already finished.

    Attributes:
        run_id: MLflow's, or the local one while MLflow doesn't have it.
    """

    def __init__(self, message: str, run_id: str) -> None:
        super().__init__(message)
        self.run_id = run_id


class NotFoundError(ConfigurationError):
    """There is nothing of this name."""


class ConflictError(ConfigurationError):
    """Something else has happened in the meantime, or the same name was used for something else."""


class DataError(AgentCoreError):
    """Examples that can't be used as they are."""

    exit_code = 2


class MetricError(AgentCoreError):
    """A metric raised, or returned what is not a score in 0–1."""

    exit_code = 2


class EvaluationError(AgentCoreError):
    """Too many examples failed for the scores to mean anything."""


class LMUnavailableError(EvaluationError):
    """The language model can't be reached, or refuses: never turned into a score of 0."""


class TooBusyError(AgentCoreError):
    """Too many requests or operations are waiting."""


class AddressInUseError(AgentCoreError):
    """A server can't listen on its address."""


class PredictionError(AgentCoreError):
    """A served program failed on a request."""


class ExecutorError(AgentCoreError):
    """The machines that should run the program can't be reached, or keep failing."""


class TrackingError(AgentCoreError):
    """The MLflow server or its stores can't be reached, or refuse."""


class StorageError(AgentCoreError):
    """A bucket with data sets can't be reached, or refuses."""


class AlertError(AgentCoreError):
    """An alert can't be sent."""


class ArtifactError(AgentCoreError):
    """A stored model is missing, changed, or doesn't fit the program it is loaded into."""


class AliasMovedError(AgentCoreError):
    """Somebody moved a registry alias without AgentCore. The alias was left where it is."""


class JournalError(AgentCoreError):
    """The journal can't be read or written."""


class PayloadGoneError(JournalError):
    """A file that an event refers to was removed or changed."""


class UnknownRunError(JournalError):
    """The journal has no such run, or no longer has it."""


class UnknownEventError(JournalError):
    """A newer version of AgentCore wrote an event that this version doesn't know."""


class JournalDamagedError(JournalError):
    """The journal's file is not a sound SQLite database."""


class DamagedEventError(JournalError):
    """An event in the journal can't be read: its row was damaged."""


class LeaseLostError(JournalError):
    """Another process took this run over, because this one did not renew its lease in time."""
