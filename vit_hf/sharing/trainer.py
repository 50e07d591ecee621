"""`VitHfTrainer` with the Hub: what the stock Trainer pushes, through a snapshot by allow-list.

The stock Trainer uploads the whole output folder with `training_args.bin`, a pickle that holds the Hub token, and a
card of its own. Here a push is one commit of the model, its processor, code and our card, from a frozen copy.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import CommitInfo, HfApi, get_token
from transformers.utils import logging

from ..training import trainer
from .attempts import retried
from .background import BackgroundPush
from .card import render_card
from .hub import check_repo, push

logger = logging.get_logger(__name__)
_STRATEGIES = ("end", "every_save")


class VitHfTrainer(trainer.VitHfTrainer):
    """`vit_hf.training.trainer.VitHfTrainer`, which see for the arguments, with `push_to_hub`.

    `args.push_to_hub` with `hub_strategy="every_save"` pushes the weights of each checkpoint in the background (those
    that move, where weights are averaged): a failure is a warning. "end" pushes when `push_to_hub` or `save_model` is
    called. "checkpoint" and "all_checkpoints" would upload optimiser state, which a push never does.
    `hub_private_repo` None means private. `hub_always_push` has no effect: the newest checkpoint is never passed over.

    Raises:
        ValueError: as the base class; or a strategy that is not served, or no token.
    """

    hub_model_id: Any
    _background: BackgroundPush | None = None

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Decide on the repo; it is made by the first push, so that the Hub cannot stop the training."""
        strategy = getattr(self.args.hub_strategy, "value", self.args.hub_strategy)
        if strategy not in _STRATEGIES:
            raise ValueError(
                f"hub_strategy {strategy!r} uploads optimiser state, which stays on this machine; use one of "
                f"{', '.join(_STRATEGIES)}"
            )
        if not self.is_world_process_zero():
            return
        token = token or self.args.hub_token
        if not (token or get_token()):
            raise ValueError("push_to_hub needs a token; log in with `hf auth login`, or set HF_TOKEN or hub_token")
        name = self.args.hub_model_id or Path(str(self.args.output_dir)).absolute().name
        if "/" not in name:
            name = f"{retried(HfApi(token=token).whoami, 'asking for the user')['name']}/{name}"
        check_repo(name)
        self.hub_model_id = name

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        wanted = self.args.push_to_hub and self.args.hub_strategy == "every_save"
        if wanted and self.is_world_process_zero():
            folder = Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"
            if self._background is None:
                self._background = BackgroundPush(
                    str(self.hub_model_id),
                    private=self._is_private(None),
                    revision=self.args.hub_revision,
                    token=self.args.hub_token,
                )
            self._background(folder, f"Training in progress, step {self.state.global_step}")

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: the stock Trainer calls it before a checkpoint is whole."""

    def _finish_current_push(self) -> None:
        if self._background is not None:
            self._background.wait()

    def create_model_card(  # type: ignore[override]  # it takes all the stock one does
        self, language: str | None = None, license: str | None = None, **others: Any
    ) -> None:
        """Render the card of the saved model from what is recorded, and write it as README.md of the output folder."""
        stated = {"language": language, **others, "model_name": None}
        if left_out := sorted(name for name, value in stated.items() if value):
            logger.warning("the card is rendered from records; it does not take %s", ", ".join(left_out))
        if self.is_world_process_zero():
            folder = Path(str(self.args.output_dir))
            if not (folder / "config.json").exists():
                raise FileNotFoundError(f"{folder} has no saved model to describe; call save_model first")
            text = render_card([folder], license=license, repo=self.hub_model_id)
            (folder / "README.md").write_text(text, encoding="utf-8")

    def push_to_hub(  # type: ignore[override]  # the stock one returns a future when not blocking, and says CommitInfo
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model to the output folder, write its card, and push it: one commit.

        Args:
            commit_message: of the commit.
            blocking: False for a future.
            token, revision, private: as for the stock Trainer, `args` where None; a new repo is private.
            kwargs: `license` for the card; what else the stock card takes is named in a warning.

        Returns:
            `CommitInfo`, or a future of it; None on other processes.

        Raises:
            HubError, ValueError: as `vit_hf.sharing.hub.push`.
        """
        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        if self.hub_model_id is None:
            self.init_hf_repo(token=token)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self.create_model_card(**kwargs)
        self._finish_current_push()
        repo, message = str(self.hub_model_id), commit_message or "End of training"

        def send() -> CommitInfo:
            pushed = push(
                str(self.args.output_dir),
                repo,
                private=self._is_private(private),
                revision=revision or self.args.hub_revision,
                message=message,
                token=token or self.args.hub_token,
            )
            url = f"{HfApi().endpoint}/{repo}/commit/{pushed.commit}"
            return CommitInfo(commit_url=url, commit_message=message, commit_description="", oid=pushed.commit)

        return send() if blocking else HfApi().run_as_future(send)

    def _is_private(self, private: bool | None) -> bool:
        wanted = self.args.hub_private_repo if private is None else private
        return True if wanted is None else wanted
