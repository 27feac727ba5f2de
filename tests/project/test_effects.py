"""Every settings key has an effect, and a test that shows it: a key without one fails here, and so does a test that is gone or does not name its key."""

import ast
import dataclasses
import re
import typing
from pathlib import Path

import pytest

from bedplate.adapt.settings import AdaptSettings
from bedplate.cli.reference import table_of
from bedplate.data.build_settings import BuildSettings
from bedplate.pretrain.settings import PretrainSettings
from bedplate.serve.guard_rules import GuardSettings
from bedplate.serve.settings import ServeSettings

TESTS = Path(__file__).resolve().parents[1]
SETTINGS = {"build": BuildSettings, "pretrain": PretrainSettings, "adapt": AdaptSettings, "guards": GuardSettings, "serve": ServeSettings}

# What shows it (file under tests/, function) -> the keys it shows.
SHOWN = {
    "build": {
        "data/test_build.py::test_setting_inputs": "inputs",
        "data/test_build.py::test_setting_output_and_workers": "workers",
        "data/test_build.py::test_changed_sources_start_anew": "output",
        "data/test_build.py::test_setting_senses": "senses",
        "data/test_build.py::test_setting_specs": "specs",
        "data/test_build.py::test_setting_licences": "licences",
        "data/test_build.py::test_setting_evaluations": "evaluations",
        "data/test_build.py::test_setting_validation_share_and_seed": "validation_share seed",
        "data/test_build.py::test_setting_max_documents": "max_documents",
        "data/test_build.py::test_setting_privacy": "privacy.mode privacy.without",
        "data/test_build.py::test_setting_dedupe": "dedupe.exact dedupe.near dedupe.threshold",
        "data/test_build.py::test_setting_poison": "poison.look poison.fewest_documents",
        "data/test_build.py::test_setting_tokenizer": "tokenizer.path tokenizer.vocabulary tokenizer.sample_bytes",
        "data/test_sources.py::test_settings_have_an_effect": "sources.hidden sources.licence sources.max_file_bytes",
        "data/test_sources.py::test_large_text_is_read_in_ranges_and_nothing_is_lost": "sources.max_text_bytes sources.range_bytes",
        "data/test_sources.py::test_member_limits_have_an_effect": "sources.max_members sources.max_ratio",
        "data/test_clean.py::test_levels_off_and_repair_refuse_nothing": "clean.level",
        "data/test_clean.py::test_each_rule_of_prose_refuses_its_case": "clean.without",
    },
    "pretrain": {
        "pretrain/test_run.py::test_what_is_given_is_not_derived": "model.size model.context run.compile",
        "adapt/test_further.py::test_a_base_and_a_size_exclude_each_other": "model.base",
        "pretrain/test_run.py::test_settings_of_the_whole_run_have_an_effect": "model.overrides data.corpus data.mixture evaluate.rows run.precision",
        "data/test_loader.py::test_filling_in_happens_as_often_as_asked": "data.packing.fim_text data.packing.fim_code",
        "data/test_loader.py::test_the_shares_of_packing_have_their_effect": "data.packing.known_share data.packing.caption_first data.packing.caption_drop",
        "pretrain/test_optim.py::test_every_setting_moves_exactly_its_parameters": (
            "optim.lr_matrix optim.lr_embedding optim.lr_head optim.lr_vector optim.weight_decay optim.beta1 optim.beta2 optim.eps optim.iterations"
            " optim.orthogonalise_in"
        ),
        "pretrain/test_training.py::test_every_setting_of_learning_changes_the_weights": (
            "optim.clip_norm schedule.warmup_share schedule.tail_share schedule.floor schedule.momentum_start schedule.momentum"
            " schedule.momentum_warmup_share schedule.context_stages run.steps run.rows_per_step run.seed"
        ),
        "pretrain/test_training.py::test_without_an_average_share_there_is_none": "schedule.average_share",
        "pretrain/test_plan.py::test_a_budget_decides_everything_with_reasons": "run.budget run.price_per_hour",
        "pretrain/test_plan.py::test_little_memory_makes_smaller_portions_and_then_an_error": "run.rows_per_micro",
        "pretrain/test_plan.py::test_processes_share_the_machine_and_add_their_speed": "run.threads",
        "pretrain/test_plan.py::test_a_plan_tells_what_does_not_fit_without_trying_it": "run.device",
        "pretrain/test_resume.py::test_checkpoints_by_the_clock": "checkpoint.every_s",
        "pretrain/test_resume.py::test_keep_policy": "checkpoint.keep_last checkpoint.keep_every_steps",
        "pretrain/test_training.py::test_settings_of_saving_change_no_weights": "checkpoint.every_steps",
        "pretrain/test_training.py::test_samples_are_told": "evaluate.every_steps sample.every_steps",
        "pretrain/test_health.py::test_nan_is_skipped": "health.on_nan",
        "pretrain/test_health.py::test_a_spike_is_only_told_when_no_action_is_chosen": "health.on_spike",
        "pretrain/test_health.py::test_stall_is_told_once_and_can_stop": "health.on_stall",
        "pretrain/test_health.py::test_exhausted_data_is_told_once_and_can_stop": "health.on_exhausted",
        "pretrain/test_health.py::test_exhausted": "health.max_epochs",
        "pretrain/test_health.py::test_spike_in_loss_and_in_gradient": "health.window health.spike_sigma",
        "pretrain/test_health.py::test_stall_at_the_start_level_and_later": "health.stall_steps health.stall_progress",
        "pretrain/test_health.py::test_roll_backs_are_limited": "health.max_roll_backs",
        "pretrain/test_health.py::test_skips_are_limited": "health.max_skips",
    },
    "adapt": {
        "adapt/test_settings.py::test_every_setting_of_learning_changes_the_adapter": (
            "base task data.file data.held_out_file data.held_out data.columns data.group data.most_positions data.template method.name"
            " classify.weights classify.words classify.weight_column classify.accuracy train.epochs train.examples_per_step train.lr train.weight_decay train.warmup_share train.clip"
            " train.seed train.precision embed.temperature"
        ),
        "adapt/test_tasks.py::test_every_choice_of_a_task_changes_its_loss": (
            "extract.sees prefer.beta distill.teacher distill.by distill.temperature distill.most_tokens"
        ),
        "adapt/test_further.py::test_the_shares_of_learning_rates": "further.lr_share",
        "adapt/test_settings.py::test_reading_the_last_token_and_starting_from_an_adapter": "classify.reads method.start",
        "adapt/test_settings.py::test_every_setting_of_a_low_rank_change_changes_the_tensors": (
            "method.rank method.alpha method.rslora method.targets method.dropout method.base_bits"
        ),
        "adapt/test_settings.py::test_settings_of_looking_change_what_is_told": "train.evaluate_every train.patience",
        "adapt/test_settings.py::test_settings_of_saving_change_what_is_kept": (
            "to checkpoint.every_s checkpoint.every_steps checkpoint.keep_last checkpoint.keep_every_steps"
        ),
        "adapt/test_settings.py::test_settings_of_the_machine": "train.threads train.device train.positions_per_micro",
    },
    "serve": {
        "serve/test_settings_effects.py::test_where_it_listens": "listen.host listen.port",
        "serve/test_settings_effects.py::test_with_a_certificate_and_its_private_key_it_speaks_tls": "listen.certificate listen.private_key",
        "serve/test_settings_effects.py::test_behind_a_proxy_that_ends_tls_cookies_are_for_https_alone": "listen.behind_tls",
        "serve/test_settings_effects.py::test_patience_with_heads_and_bodies": "listen.headers_s listen.body_s",
        "serve/test_settings_effects.py::test_an_idle_connection_is_kept_for_idle_s": "listen.idle_s",
        "serve/test_settings_effects.py::test_a_client_that_takes_nothing_is_cut_after_stalled_s": "listen.stalled_s",
        "serve/test_settings_effects.py::test_what_has_not_ended_after_drain_s_is_broken_off": "listen.drain_s",
        "serve/test_settings_effects.py::test_more_connections_than_allowed_are_refused": "listen.connections",
        "serve/test_clients.py::test_who_does_not_read_holds_up_nobody_and_is_cut_off": "listen.kept_pieces",
        "serve/test_settings_effects.py::test_path_and_backend_say_who_computes": "models.path models.backend",
        "serve/test_settings_effects.py::test_adapters_are_registered": "models.adapters",
        "serve/test_settings_effects.py::test_a_remote_is_asked_for_its_remote_model_with_the_key_of_key_file": "models.key_file models.remote_model",
        "serve/test_settings_effects.py::test_context_tokens_and_side_by_side_reach_the_backend": "models.context_tokens models.side_by_side",
        "serve/test_settings_effects.py::test_options_reach_the_backend_and_unknown_ones_are_refused": "models.options",
        "serve/test_settings_effects.py::test_every_limit_of_a_key_and_of_a_tenant_holds_over_http": (
            "limits.key.requests_per_minute limits.key.tokens_per_minute limits.key.concurrent limits.key.context_tokens"
            " limits.tenant.requests_per_minute limits.tenant.tokens_per_minute limits.tenant.concurrent limits.tenant.context_tokens"
            " limits.tenants.requests_per_minute limits.tenants.tokens_per_minute limits.tenants.concurrent limits.tenants.context_tokens"
        ),
        "serve/test_limits.py::test_one_tenant_cannot_take_every_place": "limits.concurrent limits.kept_share",
        "serve/test_door.py::test_a_large_body_is_refused_while_it_is_read": "limits.body_bytes",
        "serve/test_settings_effects.py::test_an_answer_is_as_long_as_answer_tokens_where_nobody_says": "answer_tokens",
        "serve/test_settings_effects.py::test_an_answer_ends_after_answer_s": "answer_s",
        "serve/test_settings_effects.py::test_no_more_inputs_or_choices_than_allowed": "inputs choices",
        "serve/test_settings_effects.py::test_the_audit_and_the_signing_key_lie_where_they_are_told_to": "audit signing_key",
        "serve/test_settings_effects.py::test_what_was_spent_is_kept": "spent",
        "serve/test_pages.py::test_runs_named_in_the_settings_are_shown_with_curves": "runs",
        "serve/test_settings_effects.py::test_a_browser_stays_logged_in_for_session_s": "session_s",
        "serve/test_settings_effects.py::test_keys_guards_and_routes_are_files_that_must_be_there": "keys guards routes",
        "serve/test_audit.py::test_settings_have_their_effect": (
            "auditing.rotate_bytes auditing.checkpoint_records auditing.checkpoint_s auditing.most_unwritten"
        ),
        "serve/test_policy.py::test_personal_data_is_written_down_as_the_policy_says": "redact.mode",
        "serve/test_redact.py::test_settings": "redact.keep redact.most_characters",
        "serve/test_oidc.py::test_settings": "oidc.issuer oidc.audience oidc.keys_file oidc.keys_url oidc.refetch_s",
        "serve/test_oidc.py::test_the_key_says_which_algorithm_not_the_token": "oidc.algorithms",
        "serve/test_oidc.py::test_what_is_just_within": "oidc.leeway_s oidc.longest_s",
        "serve/test_oidc.py::test_claims_become_tenant_scopes_and_labels": "oidc.tenant_claim oidc.scope_claim oidc.scopes oidc.labels_claim",
    },
    "guards": {
        "serve/test_guards.py::test_guards_toml": "rules.name rules.reason rules.on rules.literals rules.regexes rules.ignore_case",
    },
}  # fmt: skip


def leaves(settings, before=""):
    kinds = typing.get_type_hints(settings)
    for field in dataclasses.fields(settings):
        if dataclasses.is_dataclass(kinds[field.name]) or table_of(kinds[field.name]):
            yield from leaves((table_of(kinds[field.name]) or [kinds[field.name]])[0], f"{before}{field.name}.")
        else:
            yield before + field.name


def source_of(place):
    """A test with its parameters, as text."""
    path, name = place.split("::")
    text = (TESTS / path).read_text()
    for node in ast.parse(text).body:
        if isinstance(node, ast.FunctionDef) and node.name == name:
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            return "\n".join(text.splitlines()[first - 1 : node.end_lineno])
    pytest.fail(f"there is no test {place}")


@pytest.mark.parametrize("kind", SETTINGS)
def test_every_key_has_a_test_of_its_effect(kind):
    named = [key for keys in SHOWN[kind].values() for key in keys.split()]
    assert sorted(named) == sorted(set(named)) and set(named) == set(leaves(SETTINGS[kind]))
    for place, keys in SHOWN[kind].items():
        source = source_of(place)
        for key in keys.split():
            assert re.search(rf"\b{key.split('.')[-1]}\b", source), f"{place} does not name {key}"
