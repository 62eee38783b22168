// where a reconstruction is asked for: clicks, a slice each, in a list and in the picture
import { app, element, lengths, make, say, unit } from './app'
import type { Slice } from './drawing'
import { setMarks } from './marks'
import { maskAsked } from './masks'
import { eraseSlice, outlined } from './pen'
import type { Tile } from './scene'

interface Click { mm: number[]; plane: string; drawn?: boolean } // drawn: there because of what is drawn in its slice

const PLANES = ['sagittal', 'coronal', 'axial'] // by the axis that they are cut across
const COLOUR = '#5dff8f'
const HINT = 'Put the crosshair into the organ, then Predict. Shift and a click adds its slice, Alt and a click takes it away.'
const IN_SLICE = 0.51 // voxels

let clicks: Click[] = []

export const isPrompted = () => app.state.needed === 'click'

export function forgetClicks(): void {
  clicks = []
  showClicks()
}

/** A slice more to be asked with: that which was clicked in, at this pixel, through the crosshair that went there. */
export function addClick(x: number, y: number): void {
  const [tile, { mm }] = [tileAt(x, y), app.scene.place ?? { mm: null }]
  if (!tile || !mm || !app.scene.at(x, y)) return
  clicks.push({ mm, plane: PLANES[tile.axis] })
  showClicks()
}

/** Take away the prompt of the slice that this pixel is in, the nearest of several. */
export function removeClick(x: number, y: number): void {
  const [tile, place] = [tileAt(x, y), app.scene.at(x, y)]
  if (tile && place) removeNearest(place, clicks.filter((click) => isSeen(click, tile)))
}

/** Take away the prompt of a slice through the crosshair. */
export function removeClickHere(): void {
  const tiles = app.scene.tiles()
  if (app.scene.place) removeNearest(app.scene.place.mm, clicks.filter((click) => tiles.some((tile) => isSeen(click, tile))))
}

/** The clicks as a prediction is asked with them; without any, the crosshair's axial slice. */
export function promptOptions(planeTyped: boolean): Record<string, unknown> {
  const asked = clicks.length ? clicks : app.scene.place ? [{ mm: app.scene.place.mm, plane: 'axial' }] : []
  const options: Record<string, unknown> = { click: asked.map(({ mm }) => mm.join(',')) }
  const mask = maskAsked()
  if (mask) options.mask = mask
  if (!planeTyped && asked.some(({ plane }) => plane !== 'axial')) options.plane = asked.map(({ plane }) => plane)
  return options
}

/** A slice that is drawn in is asked with, and no longer when nothing is left in it; its own click, where there is one, stays. */
export function followDrawing(): void {
  const slices = outlined()
  clicks = clicks.filter((click) => !click.drawn || slices.some(({ slice }) => isIn(click, slice)))
  for (const { slice, mm } of slices) {
    const own = clicks.find((click) => isIn(click, slice))
    if (own) own.mm = within(own.mm, slice)
    else clicks.push({ mm, plane: PLANES[slice.axis], drawn: true })
  }
  showClicks()
}

const isIn = (click: Click, { axis, index }: Slice) => click.plane === PLANES[axis] && Math.abs(app.scene.voxelOf(click.mm)[axis] - index) <= IN_SLICE

/** The same place, or that in the slice which is nearest to it: a click may have been made halfway between two slices. */
function within(mm: number[], { axis, index }: Slice): number[] {
  const voxel = app.scene.voxelOf(mm)
  voxel[axis] = index
  return app.scene.placeOf(voxel)
}

export function showClicks(): void {
  const on = app.state ? isPrompted() : false
  element('clicks').hidden = element('clickList').hidden = !on
  element('clicks').textContent = clicks.length ? `${clicks.length} ${clicks.length === 1 ? 'slice' : 'slices'}; Alt and a click takes one away` : HINT
  element('clickList').replaceChildren(...clicks.map(row))
  setMarks('clicks', clicks.map(({ mm }, index) => ({ places: [mm], text: String(index + 1), colour: COLOUR, dot: true })))
}

function row(click: Click, index: number): HTMLElement {
  const plane = make('select', { ariaLabel: `slice of click ${index + 1}` }, ...PLANES.map((name) => new Option(name)))
  plane.value = click.plane
  plane.disabled = click.drawn ?? false
  plane.onchange = () => { click.plane = plane.value }
  const title = `remove click ${index + 1}${click.drawn ? ' and what is drawn in its slice' : ''}`
  return make('li', {},
    make('button', { className: 'plain', type: 'button', title: click.drawn ? 'go there; what is drawn goes with it' : 'go there', textContent: `${index + 1}: ${lengths(click.mm)} ${unit()}${click.drawn ? ' ✎' : ''}`, onclick: () => app.scene.go(click.mm) }),
    plane,
    make('button', { type: 'button', textContent: '✕', title, ariaLabel: title, onclick: () => remove(click) }))
}

const tileAt = (x: number, y: number) =>
  app.scene.tiles().find(({ left, top, width, height }) => x >= left && x <= left + width && y >= top && y <= top + height)

const isSeen = ({ mm, plane }: Click, tile: Tile) => PLANES[tile.axis] === plane && tile.at(mm).away <= IN_SLICE

function removeNearest(place: number[], near: Click[]): void {
  const away = ({ mm }: Click) => Math.hypot(...mm.map((one, axis) => one - place[axis]))
  const nearest = near.sort((one, other) => away(one) - away(other))[0]
  if (nearest) remove(nearest)
  else say('There is no click in this slice')
}

function remove(click: Click): void {
  clicks = clicks.filter((one) => one !== click)
  const slice = click.drawn && outlined().find((one) => isIn(click, one.slice))?.slice
  if (slice) eraseSlice(slice)
  say('')
  showClicks()
}
