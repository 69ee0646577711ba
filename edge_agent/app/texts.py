"""What `edge-agent` prints for people: answers, loads, models."""

from __future__ import annotations

from typing import Any

QUANTILES = ("p50", "p95", "p99")


def answer_text(reply: dict[str, Any]) -> str:
    """A reply in words: results and where the time went, or the status and its reason."""
    if reply["status"] != 200:
        reason = reply.get("reason", "no reason given")
        retry = f" (try again in {reply['retry_after_s']} s)" if reply.get("retry_after_s") else ""
        hint = "; on the command line: --prompt, --chat or --stream" if "takes prompt or messages" in reason else ""
        return f"{reply['status']}: {reason}{hint}{retry}"
    timing = reply["timing"]
    if "first_token_ms" in timing:
        return _generated_text(reply)
    results = reply["result"] if isinstance(reply["result"], list) else [reply["result"]]
    lines = [_result_text(result) for result in results]
    lines.append(
        f"  {timing['total_ms']:.1f} ms on the device (queue {timing['queue_ms']:.1f}, tokenise "
        f"{timing['tokenize_ms']:.1f}, compute {timing['compute_ms']:.1f}), batch of {reply['batch']}, "
        f"{reply['variant']}"
    )
    return "\n".join(lines)


def _generated_text(reply: dict[str, Any]) -> str:
    """A generated answer (a streamed one was shown already), how it ended, and its pace."""
    timing, result = reply["timing"], reply.get("result") or reply
    speed = f", {timing['tokens_per_s']:.1f} tokens/s" if "tokens_per_s" in timing else ""
    shown = [] if "seq" in reply else [result["text"]]
    usage = result["usage"]
    figures = (
        f"  {result['finish_reason']} after {usage['completion_tokens']} tokens; prompt of {usage['prompt_tokens']}, "
        f"first token after {timing['first_token_ms']:.0f} ms{speed}"
    )
    return "\n".join([*shown, figures] if shown else ["", figures])


def bench_text(figures: dict[str, Any]) -> str:
    """The figures of a load test in words."""
    lines = [f"{figures['per_second']} answers per second, {figures['requests']} requests"]
    if "200" in figures["statuses"]:
        lines.append("latency at the client: " + ", ".join(f"{at} {figures[f'{at}_ms']} ms" for at in QUANTILES))
        if "tokens_per_s" in figures:
            lines += _streams_text(figures)
    for status, count in figures["statuses"].items():
        reason = figures["reasons"].get(status)
        lines.append(f"{status}: {count}" + (f", such as: {reason}" if reason else ""))
    return "\n".join(lines)


def _streams_text(figures: dict[str, Any]) -> list[str]:
    """First tokens, pace and lengths of generated answers; '–' where no answer had any."""

    def shown(values: dict[str, float | None], unit: str = "") -> str:
        return ", ".join(f"{at} {'–' if value is None else f'{value}{unit}'}" for at, value in values.items())

    ends = ", ".join(f"{reason} {count}" for reason, count in figures["finished"].items())
    return [
        f"first token at the client: {shown(figures['first_token_ms'], ' ms')}",
        f"tokens/s: {figures['tokens_per_s']} by all clients together; of one answer, after its first token on the "
        f"device: {shown(figures['decode_tokens_per_s'])}",
        f"prompts of {figures['prompt_tokens']} tokens ({figures['cached_tokens']} of them known already), answers of "
        f"{figures['completion_tokens']}, ended by: {ends}",
    ]


def _result_text(result: dict[str, Any]) -> str:
    if "embedding" in result:
        start = ", ".join(f"{value:.3f}" for value in result["embedding"][:4])
        return f"embedding of {len(result['embedding'])}: [{start}, ...]"
    others = ", ".join(f"{entry['label']} {entry['score']:.2f}" for entry in result["labels"][1:])
    cut = " (text was cut)" if result["truncated"] else ""
    return f"{result['label']}  {result['score']:.2f}{cut}" + (f"   then {others}" if others else "")


def models_text(listed: list[dict[str, Any]], why: bool) -> str:
    """The installed models; with `why`, why this variant of each."""
    if not listed:
        return "nothing is installed; `edge-agent install PACKAGE` installs a package"
    lines = []
    for model in listed:
        lines.append(
            f"{model['name']}  version {model['version']}  {model['task']}  {model['variant']}  {model['why']}"
        )
        if why and model["choice"]:
            lines.append(f"  because: {model['choice']}")
        lines += _energy_lines(model.get("variants", [])) if why else []
        for adapter in model["adapters"]:
            runs = f"  runs as {adapter['merged']}" if adapter.get("merged") else ""
            lines.append(f"  + {adapter['name']}  rank {adapter['rank']}  {adapter['task']}{runs}")
            if why and adapter.get("form"):
                lines.append(f"    because: {adapter['form']}")
    return "\n".join(lines)


def _energy_lines(variants: list[dict[str, Any]]) -> list[str]:
    """By what way the energy of each variant that was tried is known, or why it is not; once where all say the same."""
    tried = {one["name"]: one["measured"] for one in variants if one["measured"] and one["measured"]["energy_method"]}
    known = [f"  energy of a text, {name}: {one['energy_method']}" for name, one in tried.items()
             if one["joules"] is not None]  # fmt: skip
    reasons = dict.fromkeys(one["energy_method"] for one in tried.values() if one["joules"] is None)
    return [*known, *(f"  energy of a text is not known: {reason}" for reason in reasons)]
