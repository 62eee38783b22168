// what is drawn over the picture, voxel by voxel of the image as it is shown, with all steps to undo
import { type Pixel } from './raster'

/** A slice of voxels: the axis that it is cut across, to the right, to the front or up, and which one along it. */
export interface Slice { axis: number; index: number }
/** Lengths of the runs of nothing and of what is drawn, in turn, along the file's own axes. */
export interface Runs { size: number[]; counts: number[] }

/** How the voxels of the picture, which run to the right, to the front and up, are stored. */
export interface Grid { dims: number[]; start: number[]; step: number[]; size: number[] }

interface Step { slice: Slice | null; voxels: Uint32Array; before: Uint8Array }

const ACROSS = [[1, 2], [0, 2], [0, 1]] // the axes of a slice, to the right and up, by the one that it is cut across

/** The axes of a slice, to the right and up. */
export const across = ({ axis }: Pick<Slice, 'axis'>) => ACROSS[axis]

/** The voxel of a slice. */
export function voxelOf({ axis, index }: Slice, [column, row]: Pixel): number[] {
  const voxel = [index, index, index]
  voxel[ACROSS[axis][0]] = column
  voxel[ACROSS[axis][1]] = row
  return voxel
}

export class Drawing {
  private steps: Step[] = []
  private count = 0

  /** `bits` are the voxels, x fastest, which the picture shows; `changed` is told whenever they are others. */
  constructor(readonly grid: Grid, private readonly bits: Uint8Array, private readonly changed: () => void) {}

  get isEmpty(): boolean {
    return this.count === 0
  }

  /** How many voxels are drawn. */
  get size(): number {
    return this.count
  }

  get undoable(): boolean {
    return this.steps.length > 0
  }

  /** Draw pixels of a slice, `column + columns * row`, or take them away. */
  paint(slice: Slice, pixels: Iterable<number>, on: boolean): void {
    const columns = this.grid.dims[ACROSS[slice.axis][0]]
    const voxels = Array.from(pixels, (one) => this.offset(voxelOf(slice, [one % columns, Math.floor(one / columns)])))
    this.set(slice, Uint32Array.from(voxels), on)
  }

  /** Draw what is stored as these runs, in place of what is drawn. */
  load({ counts }: Runs): void {
    const wanted = new Uint8Array(this.bits.length)
    let at = 0
    counts.forEach((length, place) => {
      if (place % 2) for (let one = at; one < at + length; one += 1) wanted[this.shownOffset(one)] = 1
      at += length
    })
    const others: number[] = []
    wanted.forEach((on, voxel) => { if (on !== this.bits[voxel]) others.push(voxel) })
    this.change(null, Uint32Array.from(others))
  }

  clear(): void {
    this.set(null, Uint32Array.from(this.drawn()), false)
  }

  undo(): void {
    const step = this.steps.pop()
    step?.voxels.forEach((voxel, place) => this.put(voxel, step.before[place]))
    if (step) this.changed()
  }

  /** The slices that were drawn in and still hold something. */
  slices(): Slice[] {
    const known = new Map<string, Slice>()
    for (const { slice } of this.steps) if (slice) known.set(`${slice.axis} ${slice.index}`, slice)
    return [...known.values()].filter((slice) => this.pixels(slice).size)
  }

  /** What is drawn in a slice, as `column + columns * row`. */
  pixels(slice: Slice): Set<number> {
    const [columns, rows] = ACROSS[slice.axis].map((axis) => this.grid.dims[axis])
    const found = new Set<number>()
    for (let row = 0; row < rows; row += 1) {
      for (let column = 0; column < columns; column += 1) {
        if (this.bits[this.offset(voxelOf(slice, [column, row]))]) found.add(column + columns * row)
      }
    }
    return found
  }

  has(voxel: number[]): boolean {
    return voxel.every((one, axis) => one >= 0 && one < this.grid.dims[axis]) && this.bits[this.offset(voxel)] > 0
  }

  runs(): Runs {
    const { size } = this.grid
    const stored = Float64Array.from(this.drawn(), (one) => this.storedOffset(one)).sort()
    const counts: number[] = []
    let end = 0
    for (let place = 0; place < stored.length;) {
      const from = stored[place]
      counts.push(from - end)
      for (end = from; place < stored.length && stored[place] === end; place += 1) end += 1
      counts.push(end - from)
    }
    return { size, counts: [...counts, size.reduce((one, other) => one * other, 1) - end] }
  }

  private set(slice: Slice | null, voxels: Uint32Array, on: boolean): void {
    this.change(slice, voxels.filter((voxel) => this.bits[voxel] > 0 !== on))
  }

  /** Draw these where they aren't drawn, and take them away where they are. */
  private change(slice: Slice | null, voxels: Uint32Array): void {
    if (!voxels.length) return
    this.steps.push({ slice, voxels, before: Uint8Array.from(voxels, (voxel) => this.bits[voxel]) })
    voxels.forEach((voxel) => this.put(voxel, this.bits[voxel] ? 0 : 1))
    this.changed()
  }

  private put(voxel: number, value: number): void {
    this.count += (value ? 1 : 0) - (this.bits[voxel] ? 1 : 0)
    this.bits[voxel] = value
  }

  private drawn(): number[] {
    const found: number[] = []
    for (let voxel = 0; voxel < this.bits.length && found.length < this.count; voxel += 1) if (this.bits[voxel]) found.push(voxel)
    return found
  }

  private offset([x, y, z]: number[]): number {
    return x + this.grid.dims[0] * (y + this.grid.dims[1] * z)
  }

  private storedOffset(shown: number): number {
    const { dims: [columns, rows], start, step } = this.grid
    const voxel = [shown % columns, Math.floor(shown / columns) % rows, Math.floor(shown / (columns * rows))]
    return voxel.reduce((sum, one, axis) => sum + start[axis] + step[axis] * one, 0)
  }

  private shownOffset(stored: number): number {
    const { dims, step } = this.grid
    const voxel = [0, 0, 0]
    let rest = stored
    for (const axis of [0, 1, 2].sort((one, other) => Math.abs(step[other]) - Math.abs(step[one]))) { // the slowest first
      const along = Math.min(dims[axis] - 1, Math.floor(rest / Math.abs(step[axis])))
      rest -= along * Math.abs(step[axis])
      voxel[axis] = step[axis] < 0 ? dims[axis] - 1 - along : along
    }
    return this.offset(voxel)
  }
}
