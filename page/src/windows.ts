// intensity windows: the file's own, those that a modality is looked at in, and shares of the voxels
import { app, element, make, microscopic } from './app'

type Range = [number, number]
type Window = { name: string; range: () => Range | null } // null: the picture's own

const CT: Record<string, Range> = { 'CT soft tissue': [-160, 240], 'CT lung': [-1350, 150], 'CT bone': [-500, 1500], 'CT brain': [0, 80] }
const SHARES: Range[] = [[0.1, 99.9], [2, 98], [0, 100]] // per cent of the voxels that lie below
const AUTOMATIC = 'automatic'
const BY_HAND = 'by hand'
const MOST_SORTED = 1 << 20

let windows: Window[] = []

export function prepareWindows(): void {
  const select = element<HTMLSelectElement>('window')
  select.onchange = () => setWindow(select.value)
  for (const id of ['low', 'high']) {
    element(id).onchange = () => {
      app.scene.window = [Number(element<HTMLInputElement>('low').value), Number(element<HTMLInputElement>('high').value)]
      select.value = BY_HAND
    }
  }
}

/** The windows of the image that was opened; it is seen in its file's own, where there is one. */
export function offerWindows(): void {
  const { modality = '', windows: told = [] } = app.header ?? {}
  const ownNames = told.map(({ name }, place) => `${modality || 'file'}: ${name || `window ${place + 1}`}`)
  const groups: [string, Window[]][] = [
    ['of the file', told.map(({ low, high }, place) => ({ name: ownNames[place], range: () => [low, high] }))],
    ['shares of the voxels', SHARES.map((share) => ({ name: shareName(share), range: () => shares(share) }))],
    ['CT', mayBeCT(modality) ? Object.entries(CT).map(([name, range]) => ({ name, range: () => range })) : []],
  ]
  if (modality === 'CT') groups.splice(1, 0, ...groups.splice(2))
  windows = [{ name: AUTOMATIC, range: () => null }, ...groups.flatMap(([, own]) => own)]
  const boxes = groups.filter(([, own]) => own.length).map(([label, own]) => make('optgroup', { label }, ...own.map(({ name }) => new Option(name))))
  element('window').replaceChildren(new Option(AUTOMATIC), new Option(BY_HAND), ...boxes)
  setWindow(ownNames[0] ?? AUTOMATIC)
}

/** A file that doesn't say what it is may be one, unless it is of a microscope. */
const mayBeCT = (modality: string) => modality === 'CT' || (modality === '' && !microscopic())

const shareName = ([low, high]: Range) => (low === 0 && high === 100 ? 'min to max' : `${low} to ${high} %`)

function setWindow(name: string): void {
  element<HTMLSelectElement>('window').value = name
  if (name === BY_HAND) return
  const range = windows.find((one) => one.name === name)?.range()
  if (range) app.scene.window = range
  else app.scene.reset()
  const [low, high] = app.scene.window
  element<HTMLInputElement>('low').value = String(Number(low.toPrecision(5)))
  element<HTMLInputElement>('high').value = String(Number(high.toPrecision(5)))
}

/** Percentiles of the image as it is shown, of every few voxels where there are very many. */
function shares([low, high]: Range): Range {
  const { stored, slope, start } = app.scene.stored()
  const step = Math.ceil(stored.length / MOST_SORTED)
  if (low === 0 && high === 100) return ends(stored).map((one) => slope * one + start).sort((a, b) => a - b) as Range
  const sorted = Float64Array.from({ length: Math.ceil(stored.length / step) }, (_, place) => slope * Number(stored[place * step]) + start)
    .filter(Number.isFinite).sort()
  return [percentile(sorted, low), percentile(sorted, high)]
}

function ends(values: ArrayLike<number>): Range {
  let [least, most] = [Infinity, -Infinity]
  for (let place = 0; place < values.length; place += 1) {
    const value = values[place]
    if (value < least && value > -Infinity) least = value
    if (value > most && value < Infinity) most = value
  }
  return least <= most ? [least, most] : [0, 1]
}

/** Between the two values that it lies between. */
function percentile(sorted: Float64Array, share: number): number {
  if (!sorted.length) return share / 100
  const place = (share / 100) * (sorted.length - 1)
  const below = Math.floor(place)
  return sorted[below] + (place - below) * (sorted[Math.min(below + 1, sorted.length - 1)] - sorted[below])
}
