"""A DDI server of a few lines: one action at a time, everything that the device says is kept."""

from __future__ import annotations

from dataclasses import dataclass, field

from flota.digests import digests_of
from flota.protocols.ddi import (
    CancelAction,
    Chunk,
    ConfigData,
    DdiAddresses,
    DdiArtifact,
    Deployment,
    Feedback,
    FeedbackExecution,
    Handling,
    PollAnswer,
    pack_cancel_action,
    pack_deployment,
    pack_poll_answer,
    parse_config_data,
    parse_feedback,
)
from tests.virtual.small_server import Answer, Request, SmallServer, file_answer


@dataclass
class SmallDdi:
    """`file` is offered as action `action_id` until the device closes it; `cuts`: body lengths at which links break."""

    file: bytes | None = None
    version: str = "2.0.0"
    action_id: int = 1
    update: Handling = Handling.FORCED
    metadata: dict[str, str] = field(default_factory=dict)
    cuts: list[int | None] = field(default_factory=list)
    canceling: bool = False
    token: str | None = None
    announced: bytes | None = None
    feedback: list[Feedback] = field(default_factory=list)
    cancel_feedback: list[Feedback] = field(default_factory=list)
    config: ConfigData | None = None
    downloads: list[Request] = field(default_factory=list)
    server: SmallServer | None = None

    @property
    def addresses(self) -> DdiAddresses:
        assert self.server is not None
        return DdiAddresses(self.server.url, "DEFAULT", "unit-1")

    @property
    def closing(self) -> Feedback | None:
        """The feedback that closed the action."""
        return next((each for each in self.feedback if each.execution is FeedbackExecution.CLOSED), None)

    def handle(self, request: Request) -> Answer:
        if self.token is not None and request.headers.get("authorization") != f"TargetToken {self.token}":
            return Answer(401)
        rest = request.path.removeprefix("/DEFAULT/controller/v1/unit-1")
        match request.method, rest.strip("/").split("/"):
            case "GET", [""]:
                return Answer(200, pack_poll_answer(self.poll_answer()))
            case "PUT", ["configData"]:
                self.config = parse_config_data(request.body)
                return Answer(200)
            case "GET", ["deploymentBase", _]:
                return Answer(200, pack_deployment(self.deployment()))
            case "POST", ["deploymentBase", _, "feedback"]:
                if self.closing is not None:
                    return Answer(410)
                self.feedback.append(parse_feedback(request.body))
                return Answer(200)
            case "GET", ["cancelAction", _]:
                return Answer(200, pack_cancel_action(CancelAction(self.action_id, self.action_id)))
            case "POST", ["cancelAction", _, "feedback"]:
                self.cancel_feedback.append(parse_feedback(request.body))
                self.canceling = False
                self.file = None
                return Answer(200)
            case "GET", ["softwaremodules", "1", "artifacts", "app.bin"]:
                assert self.file is not None
                self.downloads.append(request)
                cut = self.cuts.pop(0) if self.cuts else None
                return file_answer(request, self.file, '"etag-1"', cut_after=cut)
        return Answer(404)

    def poll_answer(self) -> PollAnswer:
        base = self.addresses
        active = self.file is not None and self.closing is None
        return PollAnswer(
            300,
            deployment_base=base.deployment_base(self.action_id, -17) if active and not self.canceling else None,
            cancel_action=base.cancel_action(self.action_id) if active and self.canceling else None,
            config_data=base.config_data if self.config is None else None,
        )

    def deployment(self) -> Deployment:
        assert self.file is not None
        digests = digests_of(self.announced or self.file)
        artifact = DdiArtifact(
            "app.bin",
            digests.size,
            digests.sha256,
            digests.sha1,
            digests.md5,
            download_http=self.addresses.artifact(1, "app.bin"),
        )
        chunk = Chunk("bApp", "app", self.version, (artifact,), self.metadata)
        return Deployment(self.action_id, Handling.FORCED, self.update, (chunk,))
