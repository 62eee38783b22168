// the instances of an answer: a table linked to the picture, a score slider, sizes, and tools
import { app, attempt, element, make, say, size } from './app'
import { colourOf } from './colours'
import { clearDrawing, drawnRuns, setPen } from './pen'
import type { Runs } from './drawing'
import { type Instance, type Instances, server } from './server'

const MOST_ROWS = 200
const BARS = 24
const ORDERS: Record<string, (one: Instance) => number> = { id: (one) => one.id, score: (one) => -one.score, size: (one) => -one.size }
const WAYS = { none: '', first: 'Click on the first part', second: 'Click on the second part' }

let chosen: number[] = []
let order = 'id'
let waiting: keyof typeof WAYS = 'none'
let first: number[] | null = null

const now = (): Instances | null => app.answer?.instances ?? null

export function prepareInstances(): void {
  element('delete').onclick = attempt(() => edit({ do: 'delete', ids: chosen }))
  element('hide').onclick = attempt(() => edit({ do: allHidden() ? 'show' : 'hide', ids: chosen }))
  element('merge').onclick = attempt(() => edit({ do: 'merge', ids: chosen }))
  element('split').onclick = attempt(() => wait(waiting === 'none' ? 'first' : 'none'))
  element('undo').onclick = attempt(() => edit({ do: 'undo' }))
  element('addInstance').onclick = attempt(addInstance)
  const least = element<HTMLInputElement>('least')
  least.oninput = () => { element('leastValue').textContent = Number(least.value).toFixed(2) }
  least.onchange = attempt(() => edit({ do: 'score', least: Number(least.value) }))
}

export function forgetInstances(): void {
  chosen = []
  wait('none')
}

/** The key that was pressed, if it is one of the tools'. */
export function instanceKey(event: KeyboardEvent): boolean {
  if (!now()) return false
  const tool = { Delete: 'delete', Backspace: 'delete', h: 'hide', m: 'merge', x: 'split', u: 'undo' }[event.key]
  if (event.key === 'Escape') forgetInstances()
  else if (!tool) return false
  else element<HTMLButtonElement>(tool).click()
  showInstances()
  return true
}

/** A click in the picture: part of a split, or a choice; with `add` one more. */
export async function clickInstance(add: boolean): Promise<void> {
  const [found, place] = [now(), app.scene.place]
  if (!found || !place) return
  if (waiting === 'first') {
    first = place.mm
    wait('second')
  } else if (waiting === 'second') {
    const points = [first, place.mm]
    wait('none')
    await edit({ do: 'split', ids: chosen, points })
  } else {
    const id = place.label
    if (id) chosen = add ? [...chosen.filter((one) => one !== id), id] : [id]
    else if (!add) chosen = []
    showInstances()
    document.querySelector('#instances tr.chosen')?.scrollIntoView({ block: 'nearest' })
  }
}

/** What is drawn becomes an instance, without what is another's. */
export async function addInstance(): Promise<void> {
  const drawn = drawnRuns()
  if (!drawn) throw new Error('Draw an instance first')
  const before = new Set(now()?.rows.map(({ id }) => id))
  await edit({ do: 'add', drawn, class: Number(element<HTMLInputElement>('drawnClass').value) })
  clearDrawing()
  const found = now()
  chosen = found?.rows.map(({ id }) => id).filter((id) => !before.has(id)) ?? []
  showInstances()
  document.querySelector('#instances tr.chosen')?.scrollIntoView({ block: 'nearest' })
  say(`instance ${chosen.join()} added${found?.left ? `; ${found.left} of the drawn voxels are other instances' and stay theirs` : ''}`)
}

export function showInstances(): void {
  const found = now()
  element('instanceTools').hidden = !found
  if (!found) return
  const known = new Set(found.rows.map(({ id }) => id))
  chosen = chosen.filter((id) => known.has(id))
  const seen = found.rows.filter((one) => one.seen)
  element('counted').textContent = `${seen.length} of ${found.rows.length} seen; those are saved`
  element<HTMLInputElement>('least').value = String(found.least)
  element('leastValue').textContent = found.least.toFixed(2)
  element('sizes').replaceChildren(histogram(seen))
  element('instances').replaceChildren(head(found.rows), ...rows(found.rows))
  app.scene.label(Math.max(0, ...known), chosen)
  enable(found)
}

function enable(found: Instances): void {
  const able: Record<string, boolean> = {
    delete: chosen.length > 0, hide: chosen.length > 0, merge: chosen.length > 1, split: chosen.length === 1, undo: found.steps > 0,
  }
  for (const [id, on] of Object.entries(able)) element<HTMLButtonElement>(id).disabled = !on
  element('hide').textContent = allHidden() ? 'Show' : 'Hide'
  element('split').classList.toggle('on', waiting !== 'none')
  const hint = chosen.length ? `chosen: ${chosen.join(', ')}. Shift and a click adds one, to merge.` : 'Click on an instance in the picture or in the table.'
  element('hint').textContent = WAYS[waiting] || hint
}

const allHidden = () => chosen.length > 0 && chosen.every((id) => now()?.rows.find((one) => one.id === id)?.hidden)

function wait(way: keyof typeof WAYS): void {
  waiting = way
  if (way !== 'none') setPen(false)
  first = way === 'second' ? first : null
  showInstances()
}

async function edit(change: { do: string; ids?: number[]; points?: unknown; least?: number; drawn?: Runs; class?: number }): Promise<void> {
  const [answer, id] = [app.answer, app.current]
  if (!answer) return
  if (change.ids && !change.ids.length) throw new Error('Choose an instance first: click on it')
  const before = new Set(answer.instances?.rows.map((one) => one.id))
  const found = await server.edit(id, change)
  answer.instances = found
  if (change.do === 'split') chosen = [...chosen, ...found.rows.map((one) => one.id).filter((one) => !before.has(one))]
  if (change.do === 'merge') chosen = chosen.slice(0, 1)
  say('')
  if (id !== app.current) return
  await app.scene.replaceLabels()
  showInstances()
}

function head(all: Instance[]): HTMLElement {
  const classes = new Set(all.map((one) => one.class)).size > 1
  const cells = ['', 'id', ...(classes ? ['class'] : []), 'score', 'size'].map((textContent) => {
    if (!(textContent in ORDERS)) return make('th', { textContent })
    const title = `in the order of ${textContent}`
    const onclick = () => { order = textContent; showInstances() }
    return make('th', {}, make('button', { textContent: textContent + (order === textContent ? ' ▾' : ''), title, onclick }))
  })
  return make('tr', {}, ...cells)
}

function rows(all: Instance[]): HTMLElement[] {
  const classes = new Set(all.map((one) => one.class)).size > 1
  const ordered = [...all].sort((a, b) => ORDERS[order](a) - ORDERS[order](b))
  const shown = ordered.filter((one, place) => place < MOST_ROWS || chosen.includes(one.id))
  const found = shown.map((one) => {
    const swatch = make('i', { className: 'swatch' })
    swatch.style.background = `rgb(${colourOf(one.id).join(' ')})`
    const texts = [String(one.id), ...(classes ? [String(one.class)] : []), one.score.toFixed(2), size(one.size)]
    const row = make('tr', {
      className: (chosen.includes(one.id) ? 'chosen ' : '') + (one.seen ? '' : 'unseen'),
      title: one.hidden ? 'hidden' : one.seen ? '' : 'below the score',
      onclick: (event) => {
        chosen = event.shiftKey ? [...chosen.filter((id) => id !== one.id), one.id] : [one.id]
        app.scene.go(one.position)
        showInstances()
      },
    }, make('td', {}, swatch), ...texts.map((textContent) => make('td', { textContent })))
    row.dataset.id = String(one.id)
    return row
  })
  const more = ordered.length - found.length
  return more > 0 ? [...found, make('tr', {}, make('td', { colSpan: 5, textContent: `and ${more} more` }))] : found
}

/** How many there are of each size, small ones left, on a logarithmic scale. */
function histogram(seen: Instance[]): Node {
  if (!seen.length) return make('span')
  const sizes = seen.map((one) => Math.log(Math.max(one.size, Number.MIN_VALUE)))
  const low = Math.min(...sizes)
  const step = (Math.max(...sizes) - low) / BARS || 1
  const counts = Array<number>(BARS).fill(0)
  for (const one of sizes) counts[Math.min(BARS - 1, Math.floor((one - low) / step))] += 1
  const most = Math.max(...counts)
  const bars = counts.map((count, place) => {
    const from = Math.exp(low + place * step)
    const bar = make('i', { title: `${count} of ${size(from)} to ${size(Math.exp(low + (place + 1) * step))}` })
    bar.style.height = `${(100 * count) / most}%`
    return bar
  })
  const ends = make('div', { className: 'ends' }, make('span', { textContent: size(Math.exp(low)) }), 'sizes', make('span', { textContent: size(Math.exp(low + BARS * step)) }))
  return make('div', {}, make('div', { className: 'bars' }, ...bars), ends)
}
