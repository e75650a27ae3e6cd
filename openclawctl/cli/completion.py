"""`openclawctl completion`: what makes a shell complete its commands.

Owns the script for bash; those for zsh and fish are click's. bash splits words at `:` and `=`, so
`user:al` and `--model=sm` reach it in pieces, which click would take for words: here they are put
together again.
"""

from __future__ import annotations

from typing import Final

import click

from openclawctl.cli.shell import print_line

SHELLS: Final = ("bash", "zsh", "fish")
_VARIABLE: Final = "_OPENCLAWCTL_COMPLETE"

_BASH: Final = r"""_openclawctl_completion() {
    local IFS=$'\n' response completion kind value i word current prefix
    local -a words=()
    for ((i = 0; i <= COMP_CWORD; i++)); do
        word=${COMP_WORDS[i]}
        if ((i > 1)) && [[ $word == [:=]* || ${COMP_WORDS[i - 1]} == *[:=] ]]; then
            words[${#words[@]} - 1]+=$word
        else
            words+=("$word")
        fi
    done
    current=${words[${#words[@]} - 1]}
    response=$(COMP_WORDS="${words[*]}" COMP_CWORD=$((${#words[@]} - 1)) \
        _OPENCLAWCTL_COMPLETE=bash_complete "$1" 2>/dev/null)
    COMPREPLY=()
    for completion in $response; do
        IFS=, read -r kind value <<<"$completion"
        case $kind in
            dir) compopt -o dirnames ;;
            file) compopt -o default ;;
            plain) COMPREPLY+=("$value") ;;
        esac
    done
    [[ $current == --*=* ]] && current=${current#*=}
    if [[ $current == *:* && $COMP_WORDBREAKS == *:* ]]; then
        prefix=${current%"${current##*:}"}
        COMPREPLY=("${COMPREPLY[@]#"$prefix"}")
    fi
}

complete -o nosort -F _openclawctl_completion openclawctl
"""


@click.command("completion")
@click.argument("shell", type=click.Choice(SHELLS))
def completion_command(shell: str) -> None:
    """Print the script that makes SHELL complete commands, options and names.

    Names of models, adapters, keys, principals and requests are those that the daemon has now; it
    gets 200 ms to tell them. The Debian package has the scripts installed already.

    \b
    Examples:
      source <(openclawctl completion bash)      # in ~/.bashrc
      openclawctl completion zsh > ~/.zfunc/_openclawctl
      openclawctl completion fish > ~/.config/fish/completions/openclawctl.fish
    """
    print_line(script(shell).rstrip())


def script(shell: str) -> str:
    """The script for one of `SHELLS`."""
    if shell == "bash":
        return _BASH
    from click.shell_completion import get_completion_class

    from openclawctl.cli import cli

    kind = get_completion_class(shell)
    assert kind is not None, f"click knows {shell}"
    return kind(cli, {}, "openclawctl", _VARIABLE).source()
