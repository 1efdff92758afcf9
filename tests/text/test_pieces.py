"""Texts as pieces."""

from limner.text.pieces import PAD, PIECE, START, to_pieces


def test_any_text_becomes_pieces_cut_between_characters():
    pieces = to_pieces(["", "ab  c", "héé", "图像", "\ud800"], length=4)
    assert pieces.shape == (5, 2, PIECE)

    def words(row):
        return [bytes(b for b in piece if b < 256) for piece in row.tolist() if piece[0] not in (PAD, START)]

    assert (pieces[:, 0, 0] == START).all()
    assert [words(row) for row in pieces] == [[], [b"ab"], ["hé".encode()], ["图".encode()], [b"?"]]
    assert words(to_pieces(["ab  c"], 64)[0]) == [b"ab", b"c"]
    assert words(to_pieces(["internationalisation"], 64)[0]) == [b"internat", b"ionalisa", b"tion"]
    assert to_pieces(["x" * 1000], length=64).shape == (1, 9, PIECE)


def test_a_word_is_the_same_piece_wherever_it_stands():
    row = to_pieces(["a red circle above a red star"], 64)[0].tolist()
    assert row[2] == row[6] and row[2] != row[3]
