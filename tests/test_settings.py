"""Settings: addresses of MLflow and databases, and no password of theirs in any message."""

import pytest

from agentcore.errors import ConfigurationError
from agentcore.settings import MLflowConfig, checked_uri, shown_uri

SECRET = "pw-Q1w2E3r4"


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        (f"postgresql+psycopg://me:{SECRET}@db/x", "postgresql+psycopg://db/x"),
        (f"postgresql+psycopg://me:{SECRET}@db/x\n", "postgresql+psycopg://db/x"),
        (f"http://me:{SECRET}/@#?@host:5000", "http://host:5000"),
        (f"http://me:a/b@c?{SECRET}@host:5000/p", "http://host:5000/p"),
        (f"http://me:{SECRET}@[::1", "http://[::1"),
        (f"http://me:{SECRET}@host:port", "http://host:port"),
        (f"postgresql://db/x?password={SECRET}", "postgresql://db/x"),
        (f"https://host/x?token={SECRET}#{SECRET}", "https://host/x"),
        (f"me:{SECRET}@db/x", "me:db/x"),
        (f"//me:{SECRET}@host", "…"),
        (f" http://me:{SECRET}@host ", "http://host"),
        (f"http://me:{SECRET}\r@ho\x1b[31mst", "http://ho[31mst"),
        ("sqlite:///a.db", "sqlite:///a.db"),
        (SECRET.replace("-", " "), "…"),
    ],
)
def test_a_uri_is_shown_without_password(uri, shown):
    assert shown_uri(uri) == shown
    assert SECRET not in shown


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        (f"ftp://me:{SECRET}@host", "is not a tracking URI"),
        (f"me:{SECRET}@host:5000", "is not a tracking URI"),
        (f"http://me:{SECRET}@ho st:5000", "contains a space or a control character"),
        (f"http://me:{SECRET}@host\x00:5000", "contains a space or a control character"),
        (f"http://me:{SECRET}@[::1", "can't be parsed"),
        (f"http://me:{SECRET}@host:port", "can't be parsed"),
        (f"http://me:{SECRET}@:5000", "can't be parsed"),
        (f"postgresql+psycopg://me:{SECRET}@host:port/x", "can't be parsed"),
        ("", "is not a tracking URI"),
    ],
)
@pytest.mark.parametrize("name", ["tracking_uri", "registry_uri"])
def test_a_wrong_uri_says_what_is_wrong_but_no_password(uri, message, name):
    with pytest.raises(ConfigurationError) as caught:
        MLflowConfig(**{name: uri})
    told = str(caught.value)
    assert f"{name}: " in told
    assert message in told
    assert "postgresql+psycopg://user:password@host/database" in told
    assert SECRET not in told


@pytest.mark.parametrize(
    "uri", ["http://host:5000", "sqlite:///a b.db", "databricks", "https://[::1]:5000/x"]
)
def test_a_uri_is_stripped(uri):
    assert checked_uri(f"\n {uri}\t\n") == uri == MLflowConfig(tracking_uri=f"{uri}\n").tracking_uri
