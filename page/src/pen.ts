// a pen for the slices: an outline that is filled, a brush of so many mm, by mouse or by keys
import { app, element, microscopic, unit } from './app'
import { across, type Drawing, type Runs, type Slice, voxelOf } from './drawing'
import { setMarks } from './marks'
import { setMeasuring } from './measure'
import { innermost, painted, type Pixel } from './raster'
import type { Tile } from './scene'

const COLOURS = { draw: '#5dff8f', erase: '#ff8a80' }
const AXES = ['sagittal', 'coronal', 'axial'] // slices by the axis that they are cut across
const MOVES: Record<string, Pixel> = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, 1], ArrowDown: [0, -1] }
const THROUGH: Record<string, number> = { PageUp: 1, PageDown: -1 }
const THICKER = Math.SQRT2 // a step of the brush

let on = false
let erasing = false
let drawing: Drawing | null = null
let stroke: { slice: Slice; path: Pixel[]; tile: Tile | null } | null = null // without a tile: by keys
let changed: () => void = () => undefined

export const isPen = () => on

export const isDrawn = () => drawing !== null && !drawing.isEmpty

/** What is drawn, as it is sent; null where that is nothing. */
export const drawnRuns = (): Runs | null => (isDrawn() ? drawing?.runs() ?? null : null)

export function preparePen(onChange: () => void): void {
  changed = onChange
  element('draw').onclick = () => setPen(!on)
  element('eraser').onclick = () => {
    erasing = !erasing
    setPen(true)
  }
  element('undoStroke').onclick = () => drawing?.undo()
  element('clear').onclick = () => drawing?.clear()
  const stage = element('stage')
  stage.addEventListener('pointerdown', begin, true)
  stage.addEventListener('pointermove', go, true)
  for (const end of ['pointerup', 'pointercancel']) stage.addEventListener(end, lift, true)
  for (const kind of ['mousedown', 'mouseup', 'mousemove', 'dblclick', 'touchstart', 'touchmove', 'touchend']) {
    stage.addEventListener(kind, (event) => { if (isOurs(event as MouseEvent)) event.stopPropagation() }, true)
  }
}

export function setPen(wanted: boolean): void {
  on = wanted
  stroke = null
  if (on) {
    setMeasuring(false)
    app.scene.step([0, 0, 0]) // from between two slices into one
  }
  drawing ??= on ? app.scene.draws(app.header?.shown.length ?? 3, changed) : null
  showPen()
}

/** Forget what was drawn, of an image that is opened. */
export function forgetDrawing(): void {
  app.scene.drawsNot()
  drawing = null
  erasing = false
  element<HTMLInputElement>('brush').value = String(inUnit(Math.min(...app.scene.steps)))
  setPen(false)
  changed()
}

/** Take away what is drawn in a slice. */
export function eraseSlice(slice: Slice): void {
  drawing?.paint(slice, drawing.pixels(slice), false)
}

/** What was drawn is used up. */
export function clearDrawing(): void {
  app.scene.drawsNot()
  drawing = null
  setPen(on)
  changed()
}

/** Draw what is stored as these runs, in place of what is drawn; whether the crosshair is in it. */
export function loadDrawing(runs: Runs): boolean {
  drawing ??= app.scene.draws(runs.size.length, changed)
  drawing?.load(runs)
  return drawing?.has(app.scene.voxel) ?? false
}

/** The slices that were drawn in, each with a place that is well inside: the crosshair, where that is. */
export function outlined(): { slice: Slice; mm: number[] }[] {
  const found = drawing?.slices() ?? []
  const here = app.scene.place ? app.scene.voxel : null
  return found.flatMap((slice) => {
    if (!drawing) return []
    if (here && here[slice.axis] === slice.index && drawing.has(here)) return [{ slice, mm: app.scene.placeOf(here) }]
    const inside = innermost(drawing.pixels(slice), drawing.grid.dims[across(slice)[0]])
    return inside ? [{ slice, mm: app.scene.placeOf(voxelOf(slice, inside)) }] : []
  })
}

export function showPen(): void {
  const button = element('draw')
  button.classList.toggle('on', on)
  button.ariaPressed = String(on)
  element('eraser').classList.toggle('on', on && erasing)
  element('eraser').ariaPressed = String(erasing)
  element<HTMLButtonElement>('undoStroke').disabled = !drawing?.undoable
  element<HTMLButtonElement>('clear').disabled = !isDrawn()
  element('penTools').hidden = !on && !isDrawn()
  element('brushUnit').textContent = unit()
  element('drawnCount').textContent = isDrawn() ? `${drawing?.size} voxels drawn` : ''
  element('penKeys').textContent = !on ? '' : stroke ? 'The pen is down: arrows draw, Space lifts it'
    : 'Draw with the mouse; or arrows go, Space puts the pen down, e erases, u undoes, [ ] make the brush thinner and thicker'
  element('view').classList.toggle('drawing', on)
  show()
}

/** The key that was pressed, if it is one of the pen's. */
export function penKey(event: KeyboardEvent): boolean {
  const move = event.target === element('view') ? MOVES[event.key] : undefined
  if (move) step(move)
  else if (event.key in THROUGH && event.target === element('view')) through(THROUGH[event.key])
  else if (event.key === ' ' && (event.target === element('view') || event.target === document.body)) down()
  else if (event.key === 'e') element('eraser').click()
  else if (event.key === 'u' && drawing?.undoable) drawing.undo()
  else if (event.key === '[' || event.key === ']') thicken(event.key === ']' ? THICKER : 1 / THICKER)
  else if (event.key === 'Escape') setPen(false)
  else return false
  return true
}

const inUnit = (mm: number) => Number(((microscopic() ? 1000 : 1) * mm).toPrecision(3))

/** What the pen takes: the first button alone, also while the mouse moves. */
const isOurs = (event: MouseEvent) => {
  const pressed = event.type.endsWith('move') ? event.buttons === 1 : event.button === 0
  return on && (stroke?.tile != null || pressed) && !event.shiftKey && !event.altKey && event.target !== element('cut')
}

const tileAt = (x: number, y: number) =>
  app.scene.tiles().find(({ left, top, width, height }) => x >= left && x <= left + width && y >= top && y <= top + height) ?? null

function begin(event: PointerEvent): void {
  if (!isOurs(event)) return
  const tile = tileAt(event.offsetX, event.offsetY)
  if (!tile || !drawing) return
  const voxel = app.scene.voxelAt(event.offsetX, event.offsetY, tile)
  const slice = { axis: tile.axis, index: Math.round(voxel[tile.axis]) }
  stroke = { slice, path: [flat(voxel, slice)], tile }
  element('view').setPointerCapture(event.pointerId)
  element('view').focus()
  show()
}

function go(event: PointerEvent): void {
  if (!stroke?.tile) return
  const voxel = app.scene.voxelAt(event.offsetX, event.offsetY, stroke.tile)
  stroke.path.push(flat(voxel, stroke.slice))
  show()
}

/** The end of a stroke: what it goes over is drawn or taken away. */
function lift(): void {
  if (!stroke) return
  const { slice, path } = stroke
  stroke = null
  const [right, up] = across(slice)
  const pair = (all: number[]): Pixel => [all[right], all[up]]
  const filled = element<HTMLInputElement>('filled').checked
  drawing?.paint(slice, painted(path, { radius: width() / 2, steps: pair(app.scene.steps), size: pair(app.scene.dims), filled }), !erasing)
  showPen()
}

const flat = (voxel: number[], slice: Slice): Pixel => {
  const [right, up] = across(slice)
  return [voxel[right], voxel[up]]
}

/** Of the brush, in mm. */
function width(): number {
  const typed = Number(element<HTMLInputElement>('brush').value)
  return Math.max(typed / (microscopic() ? 1000 : 1), 0)
}

function thicken(by: number): void {
  const least = Math.min(...app.scene.steps)
  element<HTMLInputElement>('brush').value = String(inUnit(Math.max(least, width() * by)))
}

/** The slice that keys draw in, through the crosshair: the one that is seen, or the chosen one of several. */
function keySlice(): Slice {
  const tiles = app.scene.tiles()
  const axis = tiles.length === 1 ? tiles[0].axis : AXES.indexOf(element<HTMLSelectElement>('penPlane').value)
  return { axis, index: app.scene.voxel[axis] }
}

function step(move: Pixel): void {
  if (!app.scene.place) return
  const slice = stroke?.slice ?? keySlice()
  app.scene.step(voxelOf({ ...slice, index: 0 }, move) as [number, number, number])
  if (!stroke) return
  stroke.path.push(flat(app.scene.voxel, slice))
  show()
}

function through(by: number): void {
  lift()
  if (!app.scene.place) return
  const by3 = [0, 0, 0]
  by3[keySlice().axis] = by
  app.scene.step(by3 as [number, number, number])
}

/** Put the pen down at the crosshair, or lift it. */
function down(): void {
  if (stroke) lift()
  else if (app.scene.place && drawing) {
    const slice = keySlice()
    stroke = { slice, path: [flat(app.scene.voxel, slice)], tile: null }
    showPen()
  }
}

/** The stroke so far, as thick as it will be. */
function show(): void {
  if (!stroke) return setMarks('pen', [])
  const { slice, path } = stroke
  const places = path.map((pixel) => app.scene.placeOf(voxelOf(slice, pixel)))
  const tile = stroke.tile ?? app.scene.tiles().find(({ axis }) => axis === slice.axis)
  const pixels = tile ? (width() * tile.width) / (app.scene.dims[across(slice)[0]] * app.scene.steps[across(slice)[0]]) : 0
  setMarks('pen', [{ places: path.length > 1 ? places : [...places, ...places], colour: erasing ? COLOURS.erase : COLOURS.draw, width: Math.max(1.5, pixels) }])
}
