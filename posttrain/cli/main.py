"""The `posttrain` command: its command groups, one module each."""

from __future__ import annotations

import click

from posttrain import __version__, configure
from posttrain.cli.ab_commands import ab
from posttrain.cli.collect_commands import collect, collected
from posttrain.cli.config_commands import check, data, settings
from posttrain.cli.import_command import import_config_command
from posttrain.cli.label_command import label_check
from posttrain.cli.loop_command import loop
from posttrain.cli.model_commands import chat, export, serve
from posttrain.cli.operations.history_command import history
from posttrain.cli.operations.prune_command import prune
from posttrain.cli.operations.rollback_command import rollback
from posttrain.cli.operations.schedule_commands import schedule
from posttrain.cli.operations.send_command import send
from posttrain.cli.operations.stack_commands import stack
from posttrain.cli.operations.trace_command import trace
from posttrain.cli.operations.why_command import why
from posttrain.cli.project_commands import init, run
from posttrain.cli.report_commands import compare, report
from posttrain.orchestration.artifact_sources import connect_artifact_sources
from posttrain.orchestration.log_colours import disable_colours_in_files


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="posttrain")
def main() -> None:
    """Train SFT, then DPO from that SFT model, and measure on held-out data whether DPO helped."""
    configure(is_project=False)
    disable_colours_in_files()
    connect_artifact_sources()


for command in (
    init,
    import_config_command,
    check,
    data,
    label_check,
    run,
    collect,
    collected,
    loop,
    report,
    compare,
    why,
    history,
    export,
    chat,
    serve,
    ab,
    stack,
    schedule,
    send,
    prune,
    rollback,
    trace,
    settings,
):
    main.add_command(command)

if __name__ == "__main__":
    main()
