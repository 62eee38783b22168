// strokes of a pen as pixels of a slice: a line of some thickness, and what an outline encloses

export type Pixel = [number, number] // a pixel's centre is at whole numbers

/** What a pen is: half its width in mm, mm per pixel, pixels of the slice, and whether what it goes around is filled. */
export interface Nib { radius: number; steps: Pixel; size: Pixel; filled: boolean }

/** The pixels that a stroke touches, as `column + columns * row`. */
export function painted(path: Pixel[], nib: Nib): Set<number> {
  const found = new Set<number>()
  path.forEach((point, place) => line(path[Math.max(0, place - 1)], point, nib, found))
  if (nib.filled && path.length > 2) enclosed(path, nib, found)
  return found
}

/** The pixels whose centres are near enough to a line, and those that it goes through however thin it is. */
function line(from: Pixel, to: Pixel, { radius, steps, size }: Nib, found: Set<number>): void {
  const [low, high] = [0, 1].map((axis) => [
    Math.max(0, Math.ceil(Math.min(from[axis], to[axis]) - radius / steps[axis])),
    Math.min(size[axis] - 1, Math.floor(Math.max(from[axis], to[axis]) + radius / steps[axis])),
  ])
  for (let row = high[0]; row <= high[1]; row += 1) {
    for (let column = low[0]; column <= low[1]; column += 1) {
      if (away([column, row], from, to, steps) <= radius) found.add(column + size[0] * row)
    }
  }
  const count = 1 + Math.ceil(2 * Math.hypot(to[0] - from[0], to[1] - from[1]))
  for (let step = 0; step <= count; step += 1) {
    const [column, row] = [0, 1].map((axis) => Math.round(from[axis] + (step / count) * (to[axis] - from[axis])))
    if (column >= 0 && row >= 0 && column < size[0] && row < size[1]) found.add(column + size[0] * row)
  }
}

/** Of a point from a line, in mm. */
function away(point: Pixel, from: Pixel, to: Pixel, steps: Pixel): number {
  const along = [0, 1].map((axis) => steps[axis] * (to[axis] - from[axis]))
  const own = [0, 1].map((axis) => steps[axis] * (point[axis] - from[axis]))
  const length = along[0] ** 2 + along[1] ** 2
  const share = length ? Math.min(1, Math.max(0, (own[0] * along[0] + own[1] * along[1]) / length)) : 0
  return Math.hypot(own[0] - share * along[0], own[1] - share * along[1])
}

/** The pixels whose centres an outline goes around, wherever it crosses itself, too (the nonzero rule). */
function enclosed(path: Pixel[], { size }: Nib, found: Set<number>): void {
  const rows = path.map(([, row]) => row)
  for (let row = Math.max(0, Math.ceil(Math.min(...rows))); row <= Math.min(size[1] - 1, Math.max(...rows)); row += 1) {
    const crossings = path.flatMap(([x, y], place): [number, number][] => {
      const [nextX, nextY] = path[(place + 1) % path.length]
      return (y <= row) === (nextY <= row) ? [] : [[x + ((row - y) / (nextY - y)) * (nextX - x), y <= row ? 1 : -1]]
    }).sort(([one], [other]) => one - other)
    let winding = 0
    crossings.forEach(([from, turn], place) => {
      winding += turn
      if (!winding) return
      const end = Math.min(size[0] - 1, crossings[place + 1][0])
      for (let column = Math.max(0, Math.ceil(from)); column <= end; column += 1) found.add(column + size[0] * row)
    })
  }
}

/** The pixel of some that is most steps along rows and columns away from what isn't among them; null of none. */
export function innermost(pixels: Set<number>, columns: number): Pixel | null {
  let rows = 0
  for (const one of pixels) rows = Math.max(rows, 1 + Math.floor(one / columns))
  const wide = columns + 2 // with nothing around
  const away = new Uint16Array(wide * (rows + 2))
  const order = [...pixels].sort((one, other) => one - other).map((one) => (1 + Math.floor(one / columns)) * wide + 1 + (one % columns))
  for (const at of order) away[at] = 1 + Math.min(away[at - 1], away[at - wide])
  let most = 0
  for (const at of order.reverse()) {
    away[at] = Math.min(away[at], 1 + Math.min(away[at + 1], away[at + wide]))
    most = Math.max(most, away[at])
  }
  const best = order.filter((at) => away[at] === most)
  const at = best[best.length >> 1]
  return at === undefined ? null : [(at % wide) - 1, Math.floor(at / wide) - 1]
}
