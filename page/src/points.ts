// the landmarks of an answer: go there, drag, move, absent
import { app, attempt, element, lengths, make } from './app'
import { type Point, server } from './server'

let chosen: number | null = null
let held: { index: number; from: number[]; to: number[] } | null = null // the point that is dragged, and the mouse

export function preparePoints(): void {
  element('addPoint').onclick = attempt(async () => {
    const [answer, place] = [app.answer, app.scene.place]
    if (!answer || !place) return
    const known = new Set(answer.points.map(({ name }) => name))
    let number = answer.points.length + 1
    while (known.has(`point_${number}`)) number += 1
    answer.points = await server.points(app.current, [{ index: null, name: `point_${number}`, position: place.mm }])
    chosen = answer.points.length - 1
    showPoints(answer.points)
    document.querySelector<HTMLInputElement>('#points tr.chosen input')?.select()
  })
}

export function showPoints(points: Point[]): void {
  if (chosen !== null && chosen >= points.length) chosen = null
  app.scene.points(points, chosen)
  element('points').hidden = element('pointTools').hidden = !points.length
  element('points').replaceChildren(...points.map(row))
}

export function forgetPoint(): void {
  chosen = null
}

/** Take hold of the point that is nearest to a place, if one is within so many mm. */
export function grabPoint(place: number[], reach: number): boolean {
  const away = (app.answer?.points ?? []).map(({ position }) => (position ? distance(position, place) : Infinity))
  const index = away.indexOf(Math.min(...away))
  if (index < 0 || away[index] > reach) return false
  held = { index, from: place, to: place }
  return true
}

/** Show the point that is held where the mouse is. */
export function dragPoint(place: number[]): void {
  if (!held) return
  held.to = place
  const points = (app.answer?.points ?? []).map((point, index) => (index === held?.index ? { ...point, position: dragged(point) } : point))
  app.scene.points(points, held.index)
}

/** Leave the point that is held where it is, if it was dragged at all. */
export async function dropPoint(moved: boolean): Promise<void> {
  const [answer, now] = [app.answer, held]
  if (!answer || !now) return
  chosen = now.index
  const to = dragged(answer.points[now.index])
  held = null
  if (moved) answer.points = await server.move(app.current, now.index, to)
  showPoints(answer.points)
}

const distance = (one: number[], other: number[]) => Math.hypot(...one.map((value, axis) => value - other[axis]))

const dragged = ({ position }: Point) => (position && held ? position.map((value, axis) => value + (held?.to[axis] ?? 0) - (held?.from[axis] ?? 0)) : position)

function row({ name, position, radius }: Point, index: number): HTMLElement {
  const place = position ? lengths(position) : 'absent'
  const texts = [place, radius === null ? '' : `± ${lengths([radius])}`]
  const tools = make('td', {},
    tool('move', `move ${name} to the crosshair`, index, () => app.scene.place?.mm ?? null),
    tool('absent', `${name} is absent`, index, () => null))
  return make('tr', {
    className: index === chosen ? 'chosen' : '',
    onclick: () => {
      chosen = index
      if (position) app.scene.go(position)
      showPoints(app.answer?.points ?? [])
    },
  }, make('td', {}, nameField(name, index)), ...texts.map((textContent) => make('td', { textContent })), tools)
}

function nameField(name: string, index: number): HTMLInputElement {
  const field = make('input', { type: 'text', className: 'plain', value: name, ariaLabel: `name of point ${index + 1}`, onclick: (event) => event.stopPropagation() })
  field.onchange = async () => {
    const answer = app.answer
    if (!answer) return
    await attempt(async () => { answer.points = await server.points(app.current, [{ index, name: field.value }]) })()
    showPoints(answer.points) // the old name again, where it was refused
  }
  return field
}

function tool(textContent: string, title: string, index: number, place: () => number[] | null): HTMLButtonElement {
  const change = attempt(async () => {
    const [answer, to] = [app.answer, place()]
    if (!answer) return
    answer.points = await server.move(app.current, index, to)
    chosen = index
    showPoints(answer.points)
  })
  return make('button', { textContent, title, ariaLabel: title, onclick: (event) => { event.stopPropagation(); change() } })
}
