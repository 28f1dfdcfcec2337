"""Which images a user's files and folders hold, whatever they are called, and what the results are
called."""

import os
import socket
from pathlib import Path

import pytest

from uae.data.folders import PREFIX, list_images, note_outputs, output_names, shortened
from uae.data.inventory import FileState, Inventory
from uae.data.longcap.pictures import survey
from uae.images.read import ImageError


def touch(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def names(*paths: Path, out: Path | None = None) -> list[str]:
    return [str(name) for name in list_images(paths, out).names]


def test_lists_recursively_in_natural_order(tmp_path):
    touch(
        tmp_path, "10.png", "2.png", "b/1.JPG", "a/3.webp", "notes.txt", ".hidden.png", ".git/x.png"
    )
    listing = list_images(tmp_path)
    assert [str(name) for name in listing.names] == ["2.png", "10.png", "a/3.webp", "b/1.JPG"]
    assert listing.files == [tmp_path / name for name in listing.names]
    assert listing.remarks() == ["1 other files ignored"]


def test_digits_of_any_script_and_letters_of_any_case(tmp_path):
    """Digits that are no decimals (①, ²) have no value, nor are those of other scripts sorted by
    theirs."""
    touch(
        tmp_path,
        "①/a.png",
        "x²/a.png",
        "٣.png",
        "10.png",
        "9.png",
        "A.png",
        "a.png",
        f"{'9' * 200}.png",
    )
    listed = names(tmp_path)
    assert len(listed) == 8
    assert listed[:3] == ["9.png", "10.png", f"{'9' * 200}.png"]
    assert listed == names(tmp_path)


def test_lists_files_as_given(tmp_path):
    touch(tmp_path, "b.png", "a.png", "odd.dat")
    paths = [tmp_path / "odd.dat", str(tmp_path / "b.png"), tmp_path]
    assert [file.name for file in list_images(paths).files] == ["odd.dat", "b.png", "a.png"]


def test_nothing_to_list(tmp_path):
    touch(tmp_path, "notes.txt")
    with pytest.raises(ImageError, match=r"found none \(1 other files\)"):
        list_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        list_images(tmp_path / "nowhere")
    with pytest.raises(ImageError, match="no path given"):
        list_images([])


def test_names_are_paths_inside_what_the_given_ones_share(tmp_path):
    touch(tmp_path, "x/1.png", "x/sub/1.png", "y/1.png")
    assert names(tmp_path / "x") == ["1.png", "sub/1.png"]
    assert names(tmp_path / "x", tmp_path / "y") == ["x/1.png", "x/sub/1.png", "y/1.png"]
    assert names(tmp_path / "x/1.png") == ["1.png"]
    assert names(tmp_path / "y/1.png", tmp_path / "x/1.png") == ["y/1.png", "x/1.png"]
    assert names(tmp_path / "x", tmp_path / "x/sub/1.png") == ["1.png", "sub/1.png"]


# --- links, and what cannot be looked into -------------------------------------------------------


def test_links_to_images_are_images_and_dangling_ones_stay_to_be_named(tmp_path):
    touch(tmp_path, "kept/a.png", "in/b.png")
    (tmp_path / "in/linked.png").symlink_to(tmp_path / "kept/a.png")
    (tmp_path / "in/gone.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "in/loop.png").symlink_to("loop.png")
    assert names(tmp_path / "in") == ["b.png", "gone.png", "linked.png", "loop.png"]
    assert names(tmp_path / "in/gone.png") == ["gone.png"]


def test_links_to_folders_are_followed_once(tmp_path):
    touch(tmp_path, "elsewhere/a.png", "elsewhere/deep/b.png", "in/real/c.png")
    (tmp_path / "in/0").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/1").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/2").symlink_to(tmp_path / "in/real")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "in/real")
    assert names(tmp_path / "in") == ["0/a.png", "0/deep/b.png", "real/c.png"]
    (tmp_path / "start").symlink_to(tmp_path / "in/real")
    assert names(tmp_path / "start") == ["c.png"]


def test_a_link_to_a_folder_that_holds_it_ends(tmp_path):
    touch(tmp_path, "in/a.png", "in/sub/b.png", "secret.png")
    (tmp_path / "in/sub/again").symlink_to(tmp_path / "in")
    (tmp_path / "in/up").symlink_to(tmp_path)
    listing = list_images(tmp_path / "in")
    assert [str(name) for name in listing.names] == ["a.png", "sub/b.png"]
    assert listing.remarks() == [
        f"left out: {tmp_path}/in/{link}: a link to a folder that holds it"
        for link in ("up", "sub/again")
    ]


def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path):
    """One that is too deep for its path, which the rights of an administrator do not help."""
    touch(tmp_path, "in/a.png")
    here = os.getcwd()
    try:
        os.chdir(tmp_path / "in")
        for _ in range(25):
            os.mkdir("d" * 200)
            os.chdir("d" * 200)
    finally:
        os.chdir(here)
    listing = list_images(tmp_path / "in")
    assert [str(name) for name in listing.names] == ["a.png"]
    (remark,) = listing.remarks()
    assert remark.startswith("left out: ")
    assert remark.endswith(": File name too long")


@pytest.mark.skipif(os.geteuid() == 0, reason="an administrator may read everything")
def test_a_folder_without_permission_is_named(tmp_path):
    touch(tmp_path, "a.png", "closed/b.png")
    (tmp_path / "closed").chmod(0)
    listing = list_images(tmp_path)
    (tmp_path / "closed").chmod(0o700)
    assert [str(name) for name in listing.names] == ["a.png"]
    assert listing.remarks() == [f"left out: {tmp_path}/closed: Permission denied"]


def test_pipes_and_sockets_are_listed_without_being_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s.png"))
        assert names(tmp_path) == ["pipe.png", "s.png"]
        files = list_images(tmp_path).files
        assert set(Inventory.of(files, [tmp_path]).states.values()) == {FileState(-1)}
        unreadable = survey(files, tmp_path / "out").unreadable
    assert unreadable[tmp_path / "pipe.png"] == "expected an image file, this is no regular file"
    assert unreadable.keys() == set(files)


# --- outputs -------------------------------------------------------------------------------------


def test_noted_outputs_are_no_inputs_and_what_lies_beside_them_is(tmp_path):
    touch(
        tmp_path,
        "a.png",
        "out/recon_a.png",
        "out/sub/recon_b.png",
        "out/mine.png",
        "00000/samples/x.png",
    )
    note_outputs(tmp_path / "out", [Path("recon_a.png")])
    note_outputs(tmp_path / "out", [Path("sub/recon_b.png")])  # by a second command
    note_outputs(tmp_path, [Path("00000")])
    assert names(tmp_path) == ["a.png", "out/mine.png"]
    assert names(tmp_path / "out") == ["mine.png"]
    outputs = list_images(tmp_path / "out", takes_outputs=True).names
    assert [str(name) for name in outputs] == ["mine.png", "recon_a.png", "sub/recon_b.png"]
    touch(tmp_path / "out", os.fsdecode(b"\xff.png"))
    note_outputs(tmp_path / "out", [Path(os.fsdecode(b"\xff.png"))])
    assert names(tmp_path / "out") == ["mine.png"]


def test_the_output_folder_is_not_searched_but_may_hold_the_images(tmp_path):
    touch(tmp_path, "a.png", "out/recon_a.png")
    (tmp_path / "latest").symlink_to(tmp_path / "out")
    assert names(tmp_path, out=tmp_path / "out") == ["a.png"]
    (tmp_path / "latest").unlink()
    assert names(tmp_path, out=tmp_path) == ["a.png", "out/recon_a.png"]
    note_outputs(tmp_path, [Path("cats/recon_1.png")])
    touch(tmp_path, "cats/1.png", "cats/recon_1.png")
    assert names(tmp_path / "cats") == ["1.png", "recon_1.png"]
    assert names(tmp_path / "cats", out=tmp_path) == ["1.png"]


def test_a_folder_of_outputs_alone_is_meant_when_it_is_named(tmp_path):
    touch(tmp_path, "painted/00000/samples/0.png")
    note_outputs(tmp_path / "painted", [Path("00000")])
    assert names(tmp_path / "painted") == ["00000/samples/0.png"]
    with pytest.raises(ImageError, match="found none"):
        list_images(tmp_path)
    with pytest.raises(ImageError, match="found none"):
        list_images(tmp_path / "painted", out=tmp_path / "painted")


def test_a_damaged_note_is_none(tmp_path):
    touch(tmp_path, "a.png")
    for text in ("", "[1]", "{}", "\0"):
        (tmp_path / ".uae_outputs.json").write_text(text)
        assert names(tmp_path) == ["a.png"]


def test_no_two_images_share_an_output():
    listed = [
        "a.png",
        "a.jpg",
        "a.png.png",
        "b.png",
        "sub/a.png",
        "recon_b.png",
        "A.png",
        "x.y.png",
        "noext",
    ]
    outputs = [str(name) for name in output_names([Path(name) for name in listed])]
    assert outputs == ["a.png", "a.jpg", "a.png.png", "b", "sub/a", "recon_b", "A", "x.y", "noext"]


def test_long_names_leave_room_and_stay_different():
    long = ["é" * 125 + f"{end}.png" for end in ("1", "2")]
    first, second = (path.name for path in output_names([Path(name) for name in long]))
    assert first != second
    for name in (first, second):
        assert len(os.fsencode(f".{PREFIX}{name}.png.tmp")) <= 255
    assert shortened("e\u0301" * 125 + "1") == first  # composed or not
    assert shortened("short") == "short"
