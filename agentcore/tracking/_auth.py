"""An MLflow plugin that sends each server the credentials of its own connection, and checks its replies.

MLflow itself reads one name and password from the environment for all servers of a process; a plugin sees
the request's URL."""

from typing import Any

from mlflow.tracking.request_auth.abstract_request_auth_provider import RequestAuthProvider
from requests.auth import AuthBase, HTTPBasicAuth
from requests.utils import get_auth_from_url, get_netrc_auth

from agentcore._process import authorization_for
from agentcore.tracking._replies import check_reply


class _ConnectionAuth(AuthBase):
    def __call__(self, request: Any) -> Any:
        request.register_hook("response", check_reply)
        header = authorization_for(request.url)
        if header is not None:
            request.headers["Authorization"] = header
        elif "Authorization" not in request.headers:
            # requests does this itself if no auth plugin is used.
            known = get_auth_from_url(request.url)
            pair = known if any(known) else get_netrc_auth(request.url)
            if pair:
                return HTTPBasicAuth(*pair)(request)
        return request


class ConnectionAuthProvider(RequestAuthProvider):  # type: ignore[misc,unused-ignore]
    def get_name(self) -> str:
        return "agentcore"

    def get_auth(self) -> AuthBase:
        return _ConnectionAuth()
