"""The commands that look at packages and machines: what keeps them from working.

They are part of `cli`, which says what holds for all commands.
"""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from spoco_zoo.errors import PackageError, SettingError, SpocoZooError
from spoco_zoo.terminal import complain, console

Overwrite = Annotated[bool, typer.Option(help="Replace what is there already.")]


class Program(StrEnum):
    """Programs that open packages, by their own names."""

    jdll = "JDLL"
    ilastik = "ilastik"
    qupath = "QuPath"
    core = "bioimageio.core"


def engines(
    install: Annotated[
        bool, typer.Option(help="Get those that are missing: 1.2 GB to download, 2.4 GB of disk.")
    ] = False,
) -> None:
    """List the engines that packages are proven in, as Fiji and ilastik bring them."""
    from rich.table import Table

    from spoco_zoo.engines import ENGINES, engines_folder

    missing = 0
    if install:
        with console().status("looking") as status:
            for engine in ENGINES:
                try:
                    engine.install(status.update)
                except SpocoZooError as error:
                    missing += 1
                    complain(error)
    typer.echo(f"{engines_folder()}:")
    table = Table("engine", "opens", "state")
    for engine in ENGINES:
        table.add_row(engine.name, engine.kind, "there" if engine.find() else "missing")
    console(stderr=False).print(table)
    if missing:
        raise typer.Exit(1)


def doctor(
    package: Annotated[
        Path | None, typer.Argument(help="Also try this package: a folder or a zip.")
    ] = None,
    device: Annotated[
        Literal["auto", "cpu", "cuda"], typer.Option(help="What must work; auto is what there is.")
    ] = "auto",
    json: Annotated[Path | None, typer.Option(help="Also write all facts to this file.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Tell what works on this machine, what does not, and the command that mends it."""
    from spoco_zoo.doctor import describe, examine
    from spoco_zoo.files import refuse_existing, write_bytes

    if json is not None:
        refuse_existing(json, overwrite=overwrite)
    checkup = examine(package, device)
    for line in describe(checkup):
        typer.echo(line)
    if json is not None:
        write_bytes(json, checkup.to_json().encode(), overwrite=overwrite)
    raise typer.Exit(0 if checkup.is_well else 1)


def validate(
    package: Annotated[Path, typer.Argument(help="bioimage.io package: a folder or a zip.")],
    programs: Annotated[
        list[Program] | None,
        typer.Option("--for", case_sensitive=False, help="Fiji is JDLL; else what it suits."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write findings to this file.")] = None,
    overwrite: Overwrite = False,
) -> None:
    """Find what keeps a package from working in Fiji, ilastik, QuPath or bioimageio.core."""
    from spoco_zoo.files import refuse_existing, write_bytes
    from spoco_zoo.lint import Report

    if json is not None:
        refuse_existing(json, overwrite=overwrite)
    report = Report.of(package, programs or ())
    console(stderr=False).print(report.table())
    typer.echo(f"{package}: {report.summary}")
    if json is not None:
        write_bytes(json, report.to_json().encode(), overwrite=overwrite)
    raise typer.Exit(1 if report.errors else 0)


def prove(
    packages: Annotated[list[Path], typer.Argument(help="bioimage.io packages: folders or zips.")],
    engines: Annotated[
        Literal["installed", "cached", "all"],
        typer.Option(help="Where they are tested; `all` gets what is missing (see `engines`)."),
    ] = "cached",
    sha256: Annotated[
        str | None, typer.Option(help="That of the zip, or of the folder's rdf.yaml, as published.")
    ] = None,
    trust: Annotated[bool, typer.Option(help="Run their code without a hash.")] = False,
    json: Annotated[
        Path | None, typer.Option(help="Also write the proof of one package to this file.")
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Prove packages anew in the engines of their users. This executes code of the packages."""
    from spoco_zoo import export_package  # noqa: F401 - says what is not installed
    from spoco_zoo.files import refuse_existing, write_bytes
    from spoco_zoo.packaging.trial import check_trust, try_package

    if len(packages) > 1 and (json is not None or sha256 is not None):
        raise SettingError(f"--json and --sha256 are for one package: got {len(packages)} packages")
    if json is not None:
        refuse_existing(json, overwrite=overwrite)
    for package in packages:
        check_trust(package, sha256, trust=trust)
    failed = 0
    for package in packages:
        typer.echo(f"{package}: its TorchScript and Python code is executed now", err=True)
        try:
            with console().status("reading the package") as status:
                is_hashed = sha256 is not None
                proof = try_package(package, engines, status.update, is_hashed=is_hashed)
        except PackageError as error:
            complain(error)
            failed += 1
            continue
        console(stderr=False).print(proof.table())
        typer.echo(f"{package}: {proof.summary}")
        failed += bool(proof.failed)
        if json is not None:
            write_bytes(json, proof.to_json().encode(), overwrite=overwrite)
    raise typer.Exit(1 if failed else 0)
