// SPDX-License-Identifier: Apache-2.0
// Tiles of one kind of panels.

#include "tiles.hpp"

const experts::TileRow &experts::i8_tiles(int rows) { return tiles<I8>(rows); }
