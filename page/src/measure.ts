// distances between two clicks, in the unit of the image; right in tilted and thick slices, too
import { app, element, lengths, make, unit } from './app'
import { setMarks } from './marks'

const COLOUR = '#ffe14d'

let measuring = false
let begun: () => void = () => undefined // who has the mouse otherwise
let first: number[] | null = null
let measured: [number[], number[]][] = []

export const isMeasuring = () => measuring

export function prepareMeasuring(onBegin: () => void): void {
  begun = onBegin
  element('measure').onclick = () => setMeasuring(!measuring)
  show()
}

export function setMeasuring(on: boolean): void {
  measuring = on
  if (on) begun()
  first = null
  show()
}

/** Forget all that was measured. */
export function forgetMeasures(): void {
  measured = []
  setMeasuring(false)
}

/** A click, or the crosshair: one end of a distance. */
export function measureTo(place: number[]): void {
  if (first) measured.push([first, place])
  first = first ? null : place
  show()
}

const told = ([one, other]: [number[], number[]]) => `${lengths([Math.hypot(...one.map((value, axis) => value - other[axis]))])} ${unit()}`

function show(): void {
  const button = element('measure')
  button.classList.toggle('on', measuring)
  button.ariaPressed = String(measuring)
  element('measureHint').textContent = !measuring ? '' : first ? 'Click on the other end' : 'Click on one end; Enter takes the crosshair'
  element('measures').replaceChildren(...measured.map(row))
  if (!app.scene) return
  const lines = measured.map((ends) => ({ places: ends, text: told(ends), colour: COLOUR, dot: true }))
  setMarks('measures', first ? [...lines, { places: [first], colour: COLOUR, dot: true }] : lines)
}

function row(ends: [number[], number[]], index: number): HTMLElement {
  const title = `remove distance ${index + 1}`
  const remove = make('button', { textContent: '✕', type: 'button', title, ariaLabel: title, onclick: () => {
    measured = measured.filter((one) => one !== ends)
    show()
  } })
  const go = make('button', { textContent: told(ends), type: 'button', className: 'plain', title: 'go there', onclick: () => app.scene.go(ends[0]) })
  return make('li', {}, go, remove)
}
