// SPDX-License-Identifier: Apache-2.0
// Tiles of one kind of panels.

#include "short.hpp"

const experts::TileRow &experts::bf16_tiles(int rows) { return tiles<BF16>(rows); }

const experts::ShortTileRow &experts::bf16_short_tiles(int rows, bool keep) { return short_tiles<BF16>(rows, keep); }
